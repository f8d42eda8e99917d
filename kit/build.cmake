# What the kit adds to llama.cpp's own build, so that it takes minutes on two cores: full optimisation
# only where the arithmetic is, and headers that many files share compiled once.
if(PROJECT_NAME STREQUAL "ggml")
    foreach(language C CXX)
        set(CMAKE_${language}_FLAGS_RELEASE "-O3 -DNDEBUG")
    endforeach()
elseif(PROJECT_NAME STREQUAL "llama.cpp")
    foreach(language C CXX)
        set(CMAKE_${language}_FLAGS_RELEASE "-O1 -DNDEBUG")
    endforeach()
    # The targets exist at the end of the top folder's CMakeLists.
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
