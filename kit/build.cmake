# What the kit adds to llama.cpp's own build, so that it takes minutes on two cores: full optimisation
# only where the arithmetic is, none for the image and sound models that the kit never runs, and headers
# that many files share compiled once.
set(speed "-O1")
if(PROJECT_NAME STREQUAL "ggml")
    set(speed "-O3")
    cmake_language(DEFER CALL target_compile_options ggml-base PRIVATE -O1) # graphs and files; ggml-cpu computes
elseif(PROJECT_NAME STREQUAL "llama.cpp")
    # The targets exist at the end of the top folder's CMakeLists.
    cmake_language(DEFER CALL target_compile_options mtmd PRIVATE -O0)
    foreach(shared
            "llama src/models/models.h"
            "llama-common common/common.h"
            "server-context tools/server/server-common.h"
            "llama-server-impl tools/server/server-common.h")
        string(REPLACE " " ";" shared "${shared}")
        list(GET shared 0 target)
        list(GET shared 1 header)
        cmake_language(EVAL CODE "cmake_language(DEFER CALL target_precompile_headers ${target} PRIVATE \"\$<\$<COMPILE_LANGUAGE:CXX>:${CMAKE_SOURCE_DIR}/${header}>\")")
    endforeach()
endif()
foreach(language C CXX)
    set(CMAKE_${language}_FLAGS_RELEASE "${speed} -DNDEBUG")
endforeach()
