#pragma once

#include "../cell.h"

namespace rnnfast {

// How the cell state is kept: by a forget gate of its own, by what the input gate leaves, or entirely.
enum class Forget { gate, coupled, none };

// Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000; peepholes p: Gers & Schmidhuber 2000;
// coupled gates: Greff et al. 2017 (CIFG).
//   i = σ(z_i + p_i c)  f = σ(z_f + p_f c)  g = tanh(z_g)  o = σ(z_o + p_o c')     z = W x + b + R h
//   c' = f c + i g     h' = o tanh(c')          coupled: f = 1 - i; none: f = 1
template <Forget forget, bool peephole> struct LstmCell {
  static constexpr bool own_gate = forget == Forget::gate;
  static constexpr int I = 0, F = 1, G = own_gate ? 2 : 1, O = G + 1;

  static constexpr const char* name = own_gate ? (peephole ? "lstm_peephole" : "lstm")
                                      : forget == Forget::coupled
                                          ? (peephole ? "lstm_coupled_peephole" : "lstm_coupled")
                                          : (peephole ? "lstm_no_forget_peephole" : "lstm_no_forget");
  static constexpr int gates = O + 1, states = 2, saved = gates;
  static constexpr auto accumulators = [] {
    std::array<Accumulator, gates> all{};
    for (int a = 0; a < gates; a++) all[a] = {a, a};
    return all;
  }();
  // In the order of the names weight_ci, weight_cf, weight_co.
  static constexpr auto unit_weights = [] {
    constexpr UnitWeight input{I, 1, false}, kept{F, 1, false}, output{O, 1, true};
    if constexpr (!peephole) {
      return std::array<UnitWeight, 0>{};
    } else if constexpr (own_gate) {
      return std::array<UnitWeight, 3>{input, kept, output};
    } else {
      return std::array<UnitWeight, 2>{input, output};
    }
  }();
  static constexpr int last = peephole ? static_cast<int>(unit_weights.size()) - 1 : 0;  // p_o

  template <class V> static V kept(const V& i, const V* gate) {
    if constexpr (own_gate) return gate[F];
    return forget == Forget::coupled ? V(1) - i : V(1);
  }

  template <class V> static void forward(const V* z, const V* p, const V* s, V* s_after, V* save) {
    const auto peep = [&](V sum, int k, V c) { return peephole ? fma(p[k], c, sum) : sum; };
    save[I] = sigmoid(peep(z[I], 0, s[1]));
    if constexpr (own_gate) save[F] = sigmoid(peep(z[F], 1, s[1]));
    save[G] = tanh(z[G]);
    const V i = save[I], ig = i * save[G];
    const V c = forget == Forget::none ? s[1] + ig : fma(kept(i, save), s[1], ig);
    save[O] = sigmoid(peep(z[O], last, c));
    s_after[0] = save[O] * tanh(c);
    s_after[1] = c;
  }

  template <class V>
  static void backward(const V* save, const V* p, const V* s, const V* s_after, V* ds_after, V* dz, V* ds) {
    const V one(1), i = save[I], g = save[G], o = save[O], f = kept(i, save);
    const V dh = ds_after[0], y = tanh(s_after[1]);
    dz[O] = dh * y * o * (one - o);
    V& dc = ds_after[1];
    dc = fma(dh * o, one - y * y, dc);
    if constexpr (peephole) dc = fma(dz[O], p[last], dc);
    const V di = forget == Forget::coupled ? g - s[1] : g;
    dz[I] = dc * di * i * (one - i);
    if constexpr (own_gate) dz[F] = dc * s[1] * f * (one - f);
    dz[G] = dc * i * (one - g * g);
    ds[0] = V(0);
    ds[1] = dc * f;
    if constexpr (peephole) ds[1] = fma(dz[I], p[0], ds[1]);
    if constexpr (peephole && own_gate) ds[1] = fma(dz[F], p[1], ds[1]);
  }
};

}  // namespace rnnfast
