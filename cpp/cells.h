// The registry: every cell that a build has, one line each.
#pragma once

#include <stdexcept>
#include <string>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

namespace rnnfast {

template <class T> const std::vector<CellKernels<T>>& cells() {
  static const std::vector<CellKernels<T>> all = {
      describe<Rnn<Tanh>, T>(), describe<Rnn<Relu>, T>(), describe<Rnn<Sigmoid>, T>(),
      describe<Lstm, T>(),      describe<Gru, T>(),
  };
  return all;
}

template <class T> const CellKernels<T>& find_cell(const std::string& name) {
  for (const CellKernels<T>& cell : cells<T>())
    if (name == cell.name) return cell;
  throw std::invalid_argument("cell: unknown name '" + name + "'");
}

}  // namespace rnnfast
