package envoytest

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// withoutIPv6 in the environment of a test's program has it run the command of its arguments as on a kernel that has no IPv6.
const withoutIPv6 = "ENVOYTEST_WITHOUT_IPV6"

func init() {
	if os.Getenv(withoutIPv6) == "" {
		return
	}
	if err := runWithoutIPv6(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runWithoutIPv6 becomes another program, for which there are no sockets of IPv6: the filter (seccomp(2)) is this thread's, and of the program that it executes.
func runWithoutIPv6(line []string) error {
	const number, firstArgument = 0, 16 // in seccomp_data
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SOCKET, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: firstArgument},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AF_INET6, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up new privileges: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&filter)), 0, 0); err != nil {
		return fmt.Errorf("filtering system calls: %w", err)
	}
	return unix.Exec(line[0], line, os.Environ())
}
