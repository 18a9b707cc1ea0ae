// The registry: every cell that a build has, one line each.
#include "cells.h"

#include <stdexcept>

#include "cells/gru.h"
#include "cells/ind_rnn.h"
#include "cells/lstm.h"
#include "cells/minimal.h"
#include "cells/rnn.h"
#include "cells/slstm.h"
#include "cells/sru.h"

namespace rnnfast {

template <class T> const std::vector<CellKernels<T>>& cells() {
  // Never destroyed: a daemon thread may still compute when the process ends.
  static const auto& all = *new std::vector<CellKernels<T>>{
      describe<Rnn<Tanh>, T>(),
      describe<Rnn<Relu>, T>(),
      describe<Rnn<Sigmoid>, T>(),
      describe<LstmCell<Forget::gate, false>, T>(),
      describe<LstmCell<Forget::gate, true>, T>(),
      describe<LstmCell<Forget::coupled, false>, T>(),
      describe<LstmCell<Forget::coupled, true>, T>(),
      describe<LstmCell<Forget::none, false>, T>(),
      describe<LstmCell<Forget::none, true>, T>(),
      describe<Gru, T>(),
      describe<GruResetBefore, T>(),
      describe<IndRnn<Tanh>, T>(),
      describe<IndRnn<Relu>, T>(),
      describe<IndRnn<Sigmoid>, T>(),
      describe<MinGru, T>(),
      describe<MinLstm, T>(),
      describe<Sru<false>, T>(),
      describe<Sru<true>, T>(),
      describe<SLstm, T>(),
  };
  return all;
}

template <class T> const CellKernels<T>& find_cell(const std::string& name) {
  for (const CellKernels<T>& cell : cells<T>())
    if (name == cell.name) return cell;
  throw std::invalid_argument("cell: unknown name '" + name + "'");
}

template const std::vector<CellKernels<float>>& cells<float>();
template const std::vector<CellKernels<double>>& cells<double>();
template const CellKernels<float>& find_cell<float>(const std::string&);
template const CellKernels<double>& find_cell<double>(const std::string&);

}  // namespace rnnfast
