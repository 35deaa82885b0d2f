# llama_chat: the part of llama.cpp's common/ that knows what chat templates mean. It analyses a template,
# builds a parser and a grammar for its tool calls, and parses replies. See chat_sources.py and bounds.h.
set(_chat_folder "${CMAKE_CURRENT_LIST_DIR}")
set(_chat_copy "${CMAKE_CURRENT_BINARY_DIR}/chat")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${_chat_folder}/../chat_sources.py")
execute_process(
  COMMAND "${Python_EXECUTABLE}" -P "${_chat_folder}/../chat_sources.py" "${LLAMA_SOURCE}/common" "${_chat_copy}"
  OUTPUT_VARIABLE _chat_sources RESULT_VARIABLE _status)
if(NOT _status EQUAL 0)
  message(FATAL_ERROR "native/chat/chat_sources.py could not prepare llama.cpp's common/ (see above)")
endif()
string(REPLACE "\n" ";" _chat_sources "${_chat_sources}")

add_library(llama_chat STATIC ${_chat_sources} "${_chat_folder}/support.cpp")
set_target_properties(llama_chat PROPERTIES
  POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
  UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
target_compile_features(llama_chat PRIVATE cxx_std_17)
# Half the time to compile; the parser is fast enough (bench.run --only reply_parser).
target_compile_options(llama_chat PRIVATE -O1 -g0 -w)
target_include_directories(llama_chat SYSTEM PUBLIC "${_chat_copy}" "${_chat_folder}" "${LLAMA_SOURCE}/vendor"
  "${LLAMA_SOURCE}/include" "${LLAMA_SOURCE}/ggml/include")
# The special parsers use the same headers, and little else.
set(_special ${_chat_sources})
list(FILTER _special INCLUDE REGEX "/parsers/")
set_source_files_properties(${_special} PROPERTIES UNITY_GROUP parsers)
