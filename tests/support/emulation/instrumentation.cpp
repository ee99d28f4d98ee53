// What -fsanitize=thread makes the compiler call before each access to memory, and all that is used of it; copies by
// functions of the library come here because the linker is told to --wrap them.
#include <string.h>

#include "checker.h"

using emulation::check;
using emulation::check_library;

extern "C" {
void* __real_memcpy(void*, const void*, size_t);
void* __real_memmove(void*, const void*, size_t);
void* __real_memset(void*, int, size_t);
}

#define CODE __builtin_return_address(0)
#define ACCESSES(bytes)                                                                       \
    void __tsan_read##bytes(void* p) { check({uintptr_t(p), bytes, false, CODE}); }           \
    void __tsan_write##bytes(void* p) { check({uintptr_t(p), bytes, true, CODE}); }           \
    void __tsan_unaligned_read##bytes(void* p) { check({uintptr_t(p), bytes, false, CODE}); } \
    void __tsan_unaligned_write##bytes(void* p) { check({uintptr_t(p), bytes, true, CODE}); }

#pragma GCC visibility push(hidden)
extern "C" {

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void* p, size_t bytes) { check_library({uintptr_t(p), bytes, false, CODE}); }
void __tsan_write_range(void* p, size_t bytes) { check_library({uintptr_t(p), bytes, true, CODE}); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() { emulation::checking = true; }

void* __wrap_memcpy(void* to, const void* from, size_t bytes) {
    check_library({uintptr_t(from), bytes, false, CODE});
    check_library({uintptr_t(to), bytes, true, CODE});
    return __real_memcpy(to, from, bytes);
}

void* __wrap_memmove(void* to, const void* from, size_t bytes) {
    check_library({uintptr_t(from), bytes, false, CODE});
    check_library({uintptr_t(to), bytes, true, CODE});
    return __real_memmove(to, from, bytes);
}

void* __wrap_memset(void* to, int value, size_t bytes) {
    check_library({uintptr_t(to), bytes, true, CODE});
    return __real_memset(to, value, bytes);
}

}  // extern "C"
#pragma GCC visibility pop
