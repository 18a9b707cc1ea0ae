// The cells of a build by name; cells.cpp lists them.
#pragma once

#include <string>
#include <vector>

#include "cell.h"

namespace rnnfast {

template <class T> const std::vector<CellKernels<T>>& cells();
template <class T> const CellKernels<T>& find_cell(const std::string& name);

}  // namespace rnnfast
