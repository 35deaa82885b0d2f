// Stands in for llama.cpp's common/common.h, of which its schema converter needs three functions.
#pragma once

#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

std::string string_join(const std::vector<std::string> & values, const std::string & separator);
std::vector<std::string> string_split(const std::string & str, const std::string & delimiter);
std::string string_repeat(const std::string & str, size_t n);

void la_converter_ignores(const char * what);

// The converter prints what it cannot express; we refuse such a schema instead, with these words.
#define fprintf(stream, format, what) la_converter_ignores(what)
