// Switches between stacks.
#pragma once

#if !defined(__x86_64__)
#error "the emulation switches stacks in x86-64 assembly"
#endif

// Saves the registers that a function keeps and the stack pointer in *from, and goes on where ``to`` was saved.
extern "C" void emulation_switch(void** from, void* to) __attribute__((visibility("hidden")));

asm(R"(
.text
.hidden emulation_switch
.globl emulation_switch
.type emulation_switch, @function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulation_switch, . - emulation_switch
)");

namespace emulation {

// What to switch to in order to call this function, which must not return, on a new stack that ends at ``end``.
inline void* new_context(char* end, void (*function)()) {
    void** top = reinterpret_cast<void**>(end) - 2;
    top[1] = nullptr;  // the return address, which also ends a debugger's walk
    top[0] = reinterpret_cast<void*>(function);
    void** saved = top - 6;
    for (int i = 0; i < 6; ++i) saved[i] = nullptr;
    return saved;
}

}  // namespace emulation
