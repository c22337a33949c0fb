// The wait of the clock, and how often Go's own threads wake.
#define _GNU_SOURCE
#include "abi.h"

#include <semaphore.h>
#include <sys/prctl.h>
#include <time.h>

// Go's sysmon takes the P from a thread that has called in with the same one for 10 ms, for calls
// from C never move its count of schedulings on. Then it polls each 20 µs, and the kernel wakes it
// 5,000 to 10,000 times a second: 8 µs a GET. With the slack below a timer of Go's threads may be
// late by as much, so that it wakes with the kernel's own ticks. Threads have it of who made them:
// Go's begin with the library's constructors, of which this is the first.
#define SLACK_NS 4000000UL

static int slack_before = -1; // of the thread that loads the library

__attribute__((constructor(101))) static void slacken(void) {
	int before = prctl(PR_GET_TIMERSLACK);
	if (before > 0 && prctl(PR_SET_TIMERSLACK, SLACK_NS) == 0) {
		slack_before = before;
	}
}

bool hw_tighten(void) { return slack_before > 0 && prctl(PR_SET_TIMERSLACK, (unsigned long)slack_before) == 0; }

static sem_t rung;

__attribute__((constructor)) static void wind(void) { sem_init(&rung, 0, 0); }

void hw_ring(void) { sem_post(&rung); }

void hw_wait(int64_t ns) {
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += ns / 1000000000, until.tv_nsec += ns % 1000000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++, until.tv_nsec -= 1000000000;
	}
	sem_clockwait(&rung, CLOCK_MONOTONIC, &until); // EINTR: the clock looks once more than it had to
}
