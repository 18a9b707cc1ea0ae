// Every tile, for every type of element.
#include "tile.h"

namespace rnnfast {
namespace {

template <class E, int M, int W> constexpr TileFunction<E> tile_or_null() {
  if constexpr (tile_exists(M, W)) {
    return tile<M, W, E>;
  } else {
    return nullptr;
  }
}
template <class E, int M, int... W> constexpr auto tile_row(std::integer_sequence<int, W...>) {
  return std::array<TileFunction<E>, sizeof...(W)>{tile_or_null<E, M + 1, W + 1>()...};
}
template <class E, int... M> constexpr TileTable<E> tile_table(std::integer_sequence<int, M...>) {
  return {tile_row<E, M>(std::make_integer_sequence<int, most_width>{})...};
}

}  // namespace

template <class E> const TileTable<E> Tiles<E>::table = tile_table<E>(std::make_integer_sequence<int, most_rows>{});

template struct Tiles<float>;
template struct Tiles<double>;
template struct Tiles<Bfloat16Pair>;

}  // namespace rnnfast
