/*
 * The process that holds a pod's namespaces open.
 *
 * It waits. When a pod shares one pid namespace it is process 1 there and
 * inherits every orphan, so it reaps them. SIGTERM and SIGINT end it with 0.
 *
 * Signals are blocked and taken with rt_sigtimedwait: a blocked signal reaches
 * process 1 even without a handler, and without handlers there is no restorer
 * and no libc. Built by hack/build-pause.sh.
 */

#define SIGINT 2
#define SIGTERM 15
#define SIGCHLD 17
#define SIG_BLOCK 0
#define WNOHANG 1
#define BIT(sig) (1UL << ((sig)-1))

#if defined(__x86_64__)
enum { SYS_sigprocmask = 14, SYS_exit_group = 231, SYS_wait4 = 61, SYS_sigtimedwait = 128 };

static long call(long n, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long ret;

	__asm__ volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
enum { SYS_sigprocmask = 135, SYS_exit_group = 94, SYS_wait4 = 260, SYS_sigtimedwait = 137 };

static long call(long n, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#else
#error "no system calls for this architecture"
#endif

/* The kernel starts here; there is nothing to return to. */
__attribute__((noreturn, used)) void _start(void)
{
	unsigned long set = BIT(SIGINT) | BIT(SIGTERM) | BIT(SIGCHLD);
	long sig;

	call(SYS_sigprocmask, SIG_BLOCK, (long)&set, 0, sizeof(set));
	for (;;) {
		/* One SIGCHLD may stand for many children. */
		while (call(SYS_wait4, -1, 0, WNOHANG, 0) > 0)
			;
		sig = call(SYS_sigtimedwait, (long)&set, 0, 0, sizeof(set));
		if (sig == SIGTERM || sig == SIGINT)
			for (;;)
				call(SYS_exit_group, 0, 0, 0, 0);
	}
}
