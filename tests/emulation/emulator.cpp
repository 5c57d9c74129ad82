#include "emulator.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstring>
#include <memory>

namespace emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
// How far a wrong index leads: any 32-bit number of 4-byte words. Closer than that nothing else is
// mapped, so that a faulty body cannot write to the memory of whoever runs it.
constexpr size_t kReach = size_t(1) << 33;
constexpr int kBarrier = -1, kExit = -2;

struct Fiber {
  Thread thread;
  ucontext_t start;
  jmp_buf resume;
  bool started = false;
  size_t any_calls = 0;
};

struct Warp {
  Fiber fibers[kLanes];
  void* arguments[kLanes];
  int arrived = 0;
  int kind = 0;
  Fiber* next = nullptr;  // runs first when the warp goes on
  enum { kReady, kAtBarrier, kDone } state = kReady;
};

struct Machine {
  const std::function<void()>* body = nullptr;
  std::vector<std::unique_ptr<Warp>> warps;
  char* stacks = nullptr;
  uint32_t* shared = nullptr;
  Fiber* current = nullptr;
  int lane_step = 1;
  jmp_buf scheduler;
  sigjmp_buf fault;
  std::string failure;
  std::vector<bool> any;  // result of each call of block_any in this block
};

Machine* machine = nullptr;

size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

void finish_thread() {
  (*machine->body)();
  collective(kExit, nullptr, nullptr);
}

// Continues `fiber`; whoever calls has saved its own place.
[[noreturn]] void jump_to(Fiber* fiber) {
  machine->current = fiber;
  if (fiber->started) _longjmp(fiber->resume, 1);
  fiber->started = true;
  setcontext(&fiber->start);
  abort();
}

[[noreturn]] void jump_to_scheduler() { _longjmp(machine->scheduler, 1); }

Warp& warp_of(const Fiber& fiber) { return *machine->warps[fiber.thread.warp]; }

void on_fault(int signal, siginfo_t* info, void*) {
  char text[80];
  snprintf(text, sizeof text, "%s at address %p", signal == SIGBUS ? "bus error" : "access fault",
           info->si_addr);
  machine->failure = text;
  siglongjmp(machine->fault, 1);
}

// Turns memory faults of the body into failures while it lives.
class FaultHandler {
 public:
  FaultHandler() : stack_(64 * 1024) {
    stack_t alternate = {};
    alternate.ss_sp = stack_.data();
    alternate.ss_size = stack_.size();
    sigaltstack(&alternate, &old_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &old_segv_);
    sigaction(SIGBUS, &action, &old_bus_);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &old_segv_, nullptr);
    sigaction(SIGBUS, &old_bus_, nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  std::vector<char> stack_;
  stack_t old_stack_;
  struct sigaction old_segv_, old_bus_;
};

void prepare_block(const Launch& launch, int block) {
  machine->any.clear();
  for (int w = 0; w < launch.warps; ++w) {
    Warp& warp = *machine->warps[w];
    warp.arrived = 0;
    warp.state = Warp::kReady;
    warp.next = &warp.fibers[launch.reversed ? kLanes - 1 : 0];
    for (int lane = 0; lane < kLanes; ++lane) {
      Fiber& fiber = warp.fibers[lane];
      fiber.thread = {lane, w, block, launch.warps, launch.blocks};
      fiber.started = false;
      fiber.any_calls = 0;
      getcontext(&fiber.start);
      fiber.start.uc_stack.ss_sp = machine->stacks + (w * kLanes + lane) * kStackBytes;
      fiber.start.uc_stack.ss_size = kStackBytes;
      fiber.start.uc_link = nullptr;
      makecontext(&fiber.start, finish_thread, 0);
    }
  }
}

// Each warp runs until it waits for the others or is done.
void run_block(const Launch& launch, int block) {
  prepare_block(launch, block);
  while (true) {
    for (int i = 0; i < launch.warps; ++i) {
      Warp& warp = *machine->warps[launch.reversed ? launch.warps - 1 - i : i];
      if (_setjmp(machine->scheduler) == 0) jump_to(warp.next);
      if (!machine->failure.empty()) return;
    }
    int waiting = 0;
    for (int i = 0; i < launch.warps; ++i) {
      waiting += machine->warps[i]->state == Warp::kAtBarrier;
    }
    if (waiting == 0) return;
    if (waiting < launch.warps) {
      machine->failure = "some warps wait at a barrier, others have left";
      return;
    }
  }
}

}  // namespace

void run(const Launch& launch, const std::function<void()>& body) {
  Machine here;
  here.body = &body;
  here.lane_step = launch.reversed ? kLanes - 1 : 1;
  const GuardedBuffer stacks(launch.warps * kLanes * kStackBytes, true);
  here.stacks = static_cast<char*>(stacks.data());
  for (int w = 0; w < launch.warps; ++w) here.warps.push_back(std::make_unique<Warp>());
  const GuardedBuffer shared(launch.shared_bytes, true);
  here.shared = static_cast<uint32_t*>(shared.data());
  machine = &here;
  {
    const FaultHandler handler;
    if (sigsetjmp(here.fault, 1) == 0) {
      for (int block = 0; block < launch.blocks && here.failure.empty(); ++block) {
        memset(shared.data(), 0xff, launch.shared_bytes);
        run_block(launch, block);
      }
    }
  }
  machine = nullptr;
  if (!here.failure.empty()) {
    const Thread t = here.current->thread;
    throw Fault(here.failure + " (block " + std::to_string(t.block) + ", warp " +
                std::to_string(t.warp) + ", lane " + std::to_string(t.lane) + ")");
  }
}

const Thread& thread() { return machine->current->thread; }

uint32_t* shared_memory() { return machine->shared; }

void fail(const std::string& what) {
  machine->failure = what;
  jump_to_scheduler();
}

void collective(int kind, void* arguments, void (*execute)(void* const*)) {
  Fiber* self = machine->current;
  Warp& warp = warp_of(*self);
  if (warp.arrived == 0) warp.kind = kind;
  if (warp.kind != kind) fail("lanes of a warp are at different collectives");
  warp.arguments[self->thread.lane] = arguments;
  if (++warp.arrived < kLanes) {
    if (_setjmp(self->resume) == 0) {
      jump_to(&warp.fibers[(self->thread.lane + machine->lane_step) % kLanes]);
    }
    return;
  }
  warp.arrived = 0;
  if (kind == kExit) {
    warp.state = Warp::kDone;
    jump_to_scheduler();
  }
  if (kind == kBarrier) {
    warp.state = Warp::kAtBarrier;
    warp.next = self;
    if (_setjmp(self->resume) == 0) jump_to_scheduler();
    warp.state = Warp::kReady;
    return;
  }
  execute(warp.arguments);
}

void block_barrier() { collective(kBarrier, nullptr, nullptr); }

bool block_any(bool x) {
  // each call has a flag of its own, so that the next call need not wait for this one's readers
  const size_t call = machine->current->any_calls++;
  if (machine->any.size() <= call) machine->any.resize(call + 1);
  machine->any[call] = machine->any[call] || x;
  block_barrier();
  return machine->any[call];
}

GuardedBuffer::GuardedBuffer(size_t bytes, bool guard_end) {
  const size_t page = page_bytes();
  usable_bytes_ = (bytes + page - 1) / page * page;
  mapped_bytes_ = usable_bytes_ + 2 * kReach;
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* mapping = mmap(nullptr, mapped_bytes_, PROT_NONE, kFlags, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  first_page_ = static_cast<char*>(mapping) + kReach;
  data_ = first_page_ + (guard_end ? usable_bytes_ - bytes : 0);
  protect(PROT_READ | PROT_WRITE);
}

GuardedBuffer::~GuardedBuffer() { munmap(first_page_ - kReach, mapped_bytes_); }

void GuardedBuffer::make_read_only() { protect(PROT_READ); }

void GuardedBuffer::protect(int access) {
  if (mprotect(first_page_, usable_bytes_, access) != 0) throw std::bad_alloc();
}

}  // namespace emulation
