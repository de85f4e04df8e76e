// Fibers: many flows of control in one thread of the operating system. A fiber has its own stack
// and runs until it hands over to another by name, so a CUDA thread can stop in the middle of a
// kernel, at a barrier, and go on later.
//
// The sanitizers follow what happens on a stack, so they are told of each change of stack.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
void __asan_unpoison_memory_region(const volatile void* start, size_t size);
}
#define FOR_ADDRESS_SANITIZER(statement) statement
#else
#define FOR_ADDRESS_SANITIZER(statement)
#endif

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* key);
void __tsan_release(void* key);
}
#define FOR_THREAD_SANITIZER(statement) statement
#else
#define FOR_THREAD_SANITIZER(statement)
#endif

// The emulator's own memory is not what the sanitizers are to watch.
#define UNWATCHED __attribute__((no_sanitize("thread", "address"), noinline))

namespace emulator {

constexpr size_t STACK = 256 * 1024;

struct Fiber {
    void* stack_pointer = nullptr;
    const void* stack = nullptr;     // its lowest address
    size_t size = 0;
    void* fake_stack = nullptr;      // the address sanitizer's
    void* tsan = nullptr;            // the thread sanitizer's idea of it
};

}  // namespace emulator

// Saves the registers that a function must preserve on the stack, writes the stack pointer to
// *saved, and goes on where `other` was saved.
extern "C" __attribute__((visibility("hidden"))) void emulator_swap(void** saved, void* other);

#if defined(__x86_64__)
asm(R"(
.text
.hidden emulator_swap
.globl emulator_swap
emulator_swap:
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
)");
#elif defined(__aarch64__)
#if defined(__APPLE__)
#define SWAP "_emulator_swap"
#else
#define SWAP "emulator_swap"
#endif
asm(".text\n.globl " SWAP "\n" SWAP ":\n" R"(
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#else
#error "the emulator knows x86-64 and aarch64 only"
#endif

namespace emulator {

// Prepares a fiber that begins in `body`, which must never return.
UNWATCHED static void fiber_begin(Fiber& fiber, void (*body)()) {
    if (!fiber.stack) {
        fiber.stack = aligned_alloc(64, STACK);
        if (!fiber.stack) abort();
        fiber.size = STACK;
        FOR_THREAD_SANITIZER(fiber.tsan = __tsan_create_fiber(0));
    }
    // a kernel that was given up in the middle leaves its marks
    FOR_ADDRESS_SANITIZER(__asan_unpoison_memory_region(fiber.stack, STACK));
    fiber.fake_stack = nullptr;
    void** top = (void**)((char*)fiber.stack + STACK - 64);
#if defined(__x86_64__)
    top[0] = (void*)body;     // where `ret` goes
    top[1] = nullptr;
    fiber.stack_pointer = top - 6;
#else
    char* frame = (char*)top - 160;
    memset(frame, 0, 160);
    ((void**)frame)[11] = (void*)body;     // x30
    fiber.stack_pointer = frame;
#endif
}

// Hands over; returns when someone hands back. `last`: nobody will.
UNWATCHED static void hand_over(Fiber& from, Fiber& to, bool last = false) {
    (void)last;
    FOR_ADDRESS_SANITIZER(
        __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.stack, to.size));
    FOR_THREAD_SANITIZER(__tsan_switch_to_fiber(to.tsan, 1));     // 1: this orders nothing
    emulator_swap(&from.stack_pointer, to.stack_pointer);
    FOR_ADDRESS_SANITIZER(__sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr));
}

// The first thing a new fiber does: it learns the stack of the one that handed over to it.
UNWATCHED static void fiber_arrived(Fiber& from) {
    (void)from;
    FOR_ADDRESS_SANITIZER(__sanitizer_finish_switch_fiber(nullptr, &from.stack, &from.size));
}

}  // namespace emulator
