// Package process measures what another process uses.
package process

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// CPU is the time that a process has used, by its clock: clock_getcpuclockid(3) makes the number
// this way.
func CPU(pid int) (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil { //nolint:gosec // a pid has 22 bits
		return 0, fmt.Errorf("the CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// Resident is what is resident of a process, bytes: proc_pid_statm(5).
func Resident(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		return 0, err
	}
	return pages * int64(os.Getpagesize()), nil
}
