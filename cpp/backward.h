// The backward driver, mirror image of the forward one. In chunks of steps, last step first:
//   dh = dy + Rᵀ dz of the step after      dz, dstates = cell'(dh, …)        the recurrence
//   dx = Wᵀ dz      dW += dz xᵀ      dR += dz hᵀ      db += dz               large products over the rows of the chunk
// so that dz is read while it is still in a cache and never kept for all steps.
#pragma once

#include "gradient.h"
#include "plan.h"
#include "weights.h"

namespace rnnfast {

template <class T> struct Adjoints {
  Sequence<const T> dy{};                      // or null: zeros
  std::array<const T*, most_states> dfinal{};  // (B, H) or null: zeros
  std::array<T*, most_states> dinitial{};      // (B, H), written
  Sequence<T> dx{};                            // written, or null: not wanted
  bool accumulate_dx = false;                  // added to what dx holds
  // Added to, at the very end; `resume`: what they hold are sums so far, which go on.
  T *dweight_ih = nullptr, *dweight_hh = nullptr, *dbias_ih = nullptr, *dbias_hh = nullptr;
  std::array<T*, most_unit_weights> dof_units{};
  bool resume = false;
  T clip = std::numeric_limits<T>::infinity();       // of each element of dh, at each step
  std::array<Sequence<T>, most_states> over_time{};  // written, or null: the whole gradient of each state
};

template <class T> class Backward {
 public:
  Backward(Layer<T>& layer, Adjoints<T> adjoints, int threads)
      : layer_(layer), adjoints_(std::move(adjoints)), plan_(make_plan(layer, threads)),
        accumulators_(static_cast<index>(layer.cell.accumulators.size())), batch_(layer.timeline.batch()),
        padded_(layer.vectors() * N), x_feed_(feed_of(layer.cell.accumulators, &Accumulator::x)),
        h_feed_(feed_of(layer.cell.accumulators, &Accumulator::h)),
        to_state_(h_feed_, layer.hidden(), layer.hidden(), plan_.width, plan_.most_units),
        chunk_rows_(std::max(rows_a_chunk, batch_) + batch_), dz_rows_(batch_ + chunk_rows_ + 1),
        dz_({layer.vectors(), dz_rows_, accumulators_, N}),
        dweight_ih_(x_feed_, layer.hidden(), layer.weights.input, chunk_rows_),
        dweight_hh_(h_feed_, layer.hidden(), layer.hidden(), chunk_rows_), dbias_(accumulators_, layer.hidden()),
        dof_units_(layer.cell.unit_weights, layer.hidden()),
        pace_(6.0 * batch_ * layer.cell.gates * layer.hidden() * (layer.weights.input + layer.hidden())),
        step_(layer.timeline.steps()) {
    if (adjoints_.dx) to_input_ = PackedColumns<T>(x_feed_, layer.hidden(), layer.weights.input, panel_width(0));
    dz_.fill(T(0));
    for (int k = 0; k < layer.cell.states; k++) start_dstate(k);
    for (int k = 0; k < plan_.threads; k++) workers_.emplace_back(*this);
    rows_.reserve(static_cast<std::size_t>(chunk_rows_));
    if (adjoints_.resume) parallel(plan_.threads, [&](int thread, int count) { exchange(thread, count, TakeUp{}); });
    parallel(plan_.threads, [&](int thread, int count) {
      const auto [first, last] = share(to_state_.blocks(), thread, count);
      for (index j = first; j < last; j++) to_state_.pack(layer_.weights.hh, j);
      if (!adjoints_.dx) return;
      const auto [first_column, last_column] = share(to_input_.blocks(), thread, count);
      for (index j = first_column; j < last_column; j++) to_input_.pack(layer_.weights.ih, j);
    });
  }

  // Runs one chunk of steps; false when all is done. Nothing of the caller's gradients changes before the last call.
  bool advance() {
    if (step_ > 0) {
      const index begin = begin_chunk();
      pace_.start();
      parallel(plan_.threads, [&](int thread, int count) { run(workers_[thread], begin, thread, count); });
      pace_.stop(step_ - begin);
      step_ = begin;
    }
    if (step_ > 0) return true;
    finish();
    return false;
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  static constexpr index rows_a_chunk = 256;

  struct Worker {
    explicit Worker(const Backward& b)
        : pointers(b.batch_, b.layer_.cell.states), dz(static_cast<std::size_t>(b.batch_)),
          dh({rows_in_cache, b.to_state_.columns(), N}) {
      if (b.adjoints_.dx) dx = Buffer<T>({b.dx_rows(), b.to_input_.columns(), N});
      for (auto& rows : dstate) rows.resize(static_cast<std::size_t>(b.batch_));
      for (auto& rows : whole) rows.resize(static_cast<std::size_t>(b.batch_));
    }
    RowPointers<T> pointers;
    std::vector<const T*> dz;  // of the step after
    std::array<std::vector<T*>, most_states> dstate, whole;
    Buffer<T> dh, dx;
  };

  struct ChunkRow {
    index step, row;
  };

  index dz_width() const { return accumulators_ * N; }
  index dz_jump() const { return dz_rows_ * dz_width(); }
  T* dz_at(index row) const { return dz_.get() + row * dz_width(); }
  DzView<T> dz_view() const { return {dz_.get(), dz_rows_, accumulators_}; }
  T* dstate_at(int k, index r) const { return dstate_[k].get() + r * padded_; }

  void start_dstate(int k) {
    dstate_[k] = Buffer<T>({batch_, padded_});
    dstate_[k].fill(T(0));
    if (!adjoints_.dfinal[k]) return;
    for (index r = 0; r < batch_; r++)
      std::copy_n(adjoints_.dfinal[k] + layer_.timeline.batch_row(r) * layer_.hidden(), layer_.hidden(),
                  dstate_at(k, r));
  }

  // Rows [0, B) of dz are those of the step after the chunk; the chunk's own follow, last step first; one row stays
  // zero.
  index begin_chunk() {
    rows_.clear();
    x_rows_.clear(), h_rows_.clear(), dz_of_row_.clear();
    for (auto& rows : unit_rows_) rows.clear();
    first_row_of_step_.clear();
    index s = step_;
    while (s > 0 && step_ - s < pace_.steps() && static_cast<index>(rows_.size()) < rows_a_chunk) {
      s--;
      first_row_of_step_.push_back(batch_ + static_cast<index>(rows_.size()));
      for (index r = 0; r < layer_.timeline.live(s); r++) {
        rows_.push_back({s, r});
        x_rows_.push_back(layer_.x.at(layer_.timeline.time(s, r), layer_.timeline.batch_row(r)));
        h_rows_.push_back(layer_.before(0, s, r));
        for (index k = 0; k < dof_units_.count(); k++) {
          const UnitWeight& weight = dof_units_[k];
          unit_rows_[k].push_back(weight.after ? layer_.after(weight.state, s, r) : layer_.before(weight.state, s, r));
        }
        dz_of_row_.push_back(dz_at(batch_ + static_cast<index>(dz_of_row_.size())));
      }
    }
    return s;
  }

  index chunk_size() const { return static_cast<index>(rows_.size()); }
  index first_row(index s) const { return s == step_ ? 0 : first_row_of_step_[step_ - 1 - s]; }

  void run(Worker& worker, index begin, int thread, int count) {
    const auto rows = plan_.by_rows ? layer_.timeline.share_rows(thread, count) : Range{0, batch_};
    const auto blocks = plan_.by_rows ? Range{0, to_state_.blocks()} : share(to_state_.blocks(), thread, count);
    for (index s = step_; s-- > begin;) {
      const index last = std::min(rows.end, layer_.timeline.live(s));
      if (rows.begin < last) step(worker, s, rows.begin, last, blocks);
      if (plan_.waits) barrier_.wait(count);
    }
    barrier_.wait(count);
    if (adjoints_.dx) input_gradient(worker, share(chunk_size(), thread, count));
    pack_operand(dweight_ih_, x_rows_, thread, count);
    if (!h_feed_.gates.empty()) pack_operand(dweight_hh_, h_rows_, thread, count);
    barrier_.wait(count);
    const auto own = share(layer_.vectors(), thread, count);
    dweight_ih_.add(dz_view(), batch_, chunk_size(), own.begin, own.end);
    if (!h_feed_.gates.empty()) dweight_hh_.add(dz_view(), batch_, chunk_size(), own.begin, own.end);
    dbias_.add(dz_view(), batch_, chunk_size(), own.begin, own.end);
    for (index k = 0; k < dof_units_.count(); k++)
      dof_units_.add(k, dz_view(), batch_, unit_rows_[k].data(), chunk_size(), own.begin, own.end);
    for (index v = own.begin; v < own.end; v++)
      std::copy_n(dz_at(first_row(begin)) + v * dz_jump(), layer_.timeline.live(begin) * dz_width(),
                  dz_at(0) + v * dz_jump());
  }

  void step(Worker& worker, index s, index first, index last, Range blocks) {
    worker.pointers.set(layer_, s, first, last);
    const index running = point_to_dz_after(worker, s, first, last);
    for (index r = first; r < last; r++)
      for (int k = 0; k < layer_.cell.states; k++) {
        worker.dstate[k][r - first] = dstate_at(k, r);
        if (const Sequence<T>& all = adjoints_.over_time[k])
          worker.whole[k][r - first] = all.at(layer_.timeline.time(s, r), layer_.timeline.batch_row(r));
      }
    for (index r = first; r < last;) {
      const index rows = even_part(last - r, rows_in_cache), with_dz = std::clamp<index>(running - r, 0, rows);
      T* dh = worker.dh.get();
      const index stride = to_state_.columns_of(blocks) * N;
      to_state_.multiply_into(worker.dz.data() + (r - first), with_dz, dz_jump(), blocks, dh, stride);
      std::fill_n(dh + with_dz * stride, (rows - with_dz) * stride, T(0));
      for (index j = blocks.begin; j < blocks.end; j++)
        block(worker, s, j, first, r, rows, with_dz,
              dh + (to_state_.column_of(j) - to_state_.column_of(blocks.begin)) * N, stride);
      r += rows;
    }
  }

  // Points at the dz of step s + 1 of the rows that still ran then, and gives their end. A state that was reset before
  // that step passes nothing back: its row points at zeros.
  index point_to_dz_after(Worker& worker, index s, index first, index last) const {
    const Timeline& timeline = layer_.timeline;
    const index running = s + 1 < timeline.steps() ? std::min(last, timeline.live(s + 1)) : first;
    for (index r = first; r < running; r++) {
      const bool fresh = timeline.origin(s + 1, r) == Origin::fresh;
      worker.dz[r - first] = dz_at(fresh ? dz_rows_ - 1 : first_row(s + 1) + r);
    }
    return running;
  }

  // One block of units of rows [r, r + rows), the first `running` of which have a step after this one; dh is what that
  // step gives.
  void block(Worker& worker, index s, index j, index first, index r, index rows, index running, T* dh, index stride) {
    const index unit = to_state_.column_of(j) * N, vectors = to_state_.columns_of(j), width = vectors * N;
    const Timeline& timeline = layer_.timeline;
    for (index i = 0; i < rows; i++) {
      if (i < running && timeline.origin(s + 1, r + i) == Origin::fresh)
        for (int k = 0; k < layer_.cell.states; k++) std::fill_n(dstate_at(k, r + i) + unit, width, T(0));
      const T* dy = adjoints_.dy ? adjoints_.dy.at(timeline.time(s, r + i), timeline.batch_row(r + i)) + unit : nullptr;
      add_to_dh(dstate_at(0, r + i) + unit, dy, layer_.hidden() - unit, vectors, dh + i * stride);
    }

    const RowPointers<T>& p = worker.pointers;
    BackwardBlock<T> block{rows,
                           vectors,
                           unit,
                           layer_.hidden(),
                           dh,
                           stride,
                           {},
                           {},
                           p.saved() + (r - first),
                           {},
                           {},
                           dz_at(first_row(s) + r),
                           dz_rows_,
                           layer_.weights.of_units.data()};
    for (int k = 0; k < layer_.cell.states; k++) {
      block.before[k] = p.before(k) + (r - first);
      block.after[k] = p.after(k) + (r - first);
      block.dstate[k] = worker.dstate[k].data() + (r - first);
      if (adjoints_.over_time[k]) block.whole[k] = worker.whole[k].data() + (r - first);
    }
    layer_.cell.backward(block);
  }

  // What does not come through the product is added after it: a long sum that began with its largest term would be
  // rounded at that term's size all along. dy comes last, so that the sum before it is what passes from one call to the
  // next where a sequence is cut in time.
  void add_to_dh(const T* direct, const T* dy, index valid, index vectors, T* dh) const {
    const Vec<T> most(adjoints_.clip), least(-adjoints_.clip);
    for (index u = 0; u < vectors; u++) {
      Vec<T> sum = Vec<T>::load(dh + u * N) + Vec<T>::load(direct + u * N);
      if (dy) sum = sum + Vec<T>::load_first(dy + u * N, static_cast<int>(std::min(valid - u * N, N)));
      max(min(sum, most), least).store(dh + u * N);
    }
  }

  void input_gradient(Worker& worker, Range rows) {
    const index stride = to_input_.columns() * N;
    T* z = worker.dx.get();
    for (index q = rows.begin; q < rows.end;) {
      const index n = even_part(rows.end - q, dx_rows());
      to_input_.multiply_into(dz_of_row_.data() + q, n, dz_jump(), to_input_.all_blocks(), z, stride);
      for (index i = 0; i < n; i++) write_dx(z + i * stride, dx_row(q + i));
      q += n;
    }
  }

  void write_dx(const T* from, T* to) const {
    const index input = layer_.weights.input;
    if (!adjoints_.accumulate_dx) {
      std::copy_n(from, input, to);
      return;
    }
    for (index f = 0; f < input; f++) to[f] += from[f];
  }

  // Rows of dx that are made together: as many as stay in the level-2 cache, but enough to fill tiles.
  index dx_rows() const {
    constexpr index least = 12, most = 96, bytes = 128 * 1024;
    return std::clamp(bytes / (to_input_.columns() * N * static_cast<index>(sizeof(T))), least, most);
  }

  T* dx_row(index q) const {
    const auto [s, r] = rows_[static_cast<std::size_t>(q)];
    return adjoints_.dx.at(layer_.timeline.time(s, r), layer_.timeline.batch_row(r));
  }

  void pack_operand(WeightGradient<T>& gradient, const std::vector<const T*>& rows, int thread, int count) {
    const auto columns = share(gradient.columns(), thread, count);
    gradient.pack(rows.data(), chunk_size(), columns.begin, columns.end);
  }

  // The gradient of the initial state, zeros of dx past the lengths, and the sums into the caller's gradients.
  void finish() {
    parallel(plan_.threads, [&](int thread, int count) {
      initial_gradient(workers_[thread], share(batch_, thread, count));
      adjoints_.resume ? exchange(thread, count, HandOver{}) : exchange(thread, count, AddSum{});
    });
  }

  // All sums and the caller's gradients.
  template <class Meet> void exchange(int thread, int count, Meet meet) const {
    const auto ih = share(dweight_ih_.rows(), thread, count), hh = share(dweight_hh_.rows(), thread, count);
    dweight_ih_.exchange(adjoints_.dweight_ih, ih.begin, ih.end, meet);
    dweight_hh_.exchange(adjoints_.dweight_hh, hh.begin, hh.end, meet);
    if (thread > 0) return;
    if (adjoints_.dbias_ih) dbias_.exchange(x_feed_, adjoints_.dbias_ih, meet);
    if (adjoints_.dbias_hh) dbias_.exchange(h_feed_, adjoints_.dbias_hh, meet);
    for (index k = 0; k < dof_units_.count(); k++) dof_units_.exchange(k, adjoints_.dof_units[k], meet);
  }

  void initial_gradient(Worker& worker, Range rows) {
    const Timeline& timeline = layer_.timeline;
    const index hidden = layer_.hidden();
    for (index r = rows.begin; r < rows.end; r++) {
      const index b = timeline.batch_row(r);
      const bool given = starts_as_given(r);
      for (int k = 0; k < layer_.cell.states; k++) {
        T* to = adjoints_.dinitial[k] + b * hidden;
        given ? std::copy_n(dstate_at(k, r), hidden, to) : std::fill_n(to, hidden, T(0));
      }
      if (adjoints_.dx && !adjoints_.accumulate_dx)
        for (index t = timeline.length(r); t < adjoints_.dx.steps; t++)
          std::fill_n(adjoints_.dx.at(t, b), adjoints_.dx.width, T(0));
    }
    // Rows sorted by length: those that ran come first.
    const index last = std::min(rows.end, timeline.live(0)), stride = to_state_.columns() * N;
    T* dh = worker.dh.get();
    for (index first = rows.begin; first < last;) {
      const index n = even_part(last - first, rows_in_cache);
      for (index i = 0; i < n; i++) worker.dz[i] = dz_at(first + i);
      to_state_.multiply_into(worker.dz.data(), n, dz_jump(), to_state_.all_blocks(), dh, stride);
      for (index i = 0; i < n; i++) {
        if (!starts_as_given(first + i)) continue;
        T* row = dh + i * stride;
        for (index k = 0; k < padded_; k++) row[k] += dstate_at(0, first + i)[k];
        std::copy_n(row, hidden, adjoints_.dinitial[0] + timeline.batch_row(first + i) * hidden);
      }
      first += n;
    }
  }

  // Whether a row's first step starts from the initial state that was given, or the row has no step at all.
  bool starts_as_given(index r) const {
    return r >= layer_.timeline.live(0) || layer_.timeline.origin(0, r) == Origin::given;
  }

  Layer<T>& layer_;
  Adjoints<T> adjoints_;
  Plan plan_;
  index accumulators_, batch_, padded_;
  Feed x_feed_, h_feed_;
  PackedColumns<T> to_state_, to_input_;
  index chunk_rows_, dz_rows_;
  Buffer<T> dz_;
  std::array<Buffer<T>, most_states> dstate_;
  WeightGradient<T> dweight_ih_, dweight_hh_;
  BiasGradient<T> dbias_;
  UnitWeightGradient<T> dof_units_;
  Pace pace_;
  index step_;  // steps at or after this one are done
  std::vector<Worker> workers_;
  std::vector<ChunkRow> rows_;
  std::vector<const T*> x_rows_, h_rows_, dz_of_row_;
  std::array<std::vector<const T*>, most_unit_weights> unit_rows_;
  std::vector<index> first_row_of_step_;
  Barrier barrier_;
};

}  // namespace rnnfast
