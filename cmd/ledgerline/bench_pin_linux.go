package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// apart gives processes the first half of the processors and this process and the others the rest, so that what the load itself costs
// is not taken from what it measures. The function returned ends that. With one processor nothing is done.
func apart(measured, others []int) (together func(), err error) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, fmt.Errorf("ask which processors may be used: %w", err)
	}
	var first, rest unix.CPUSet
	n := 0
	for cpu := 0; n < all.Count(); cpu++ {
		if !all.IsSet(cpu) {
			continue
		}
		if n < all.Count()/2 {
			first.Set(cpu)
		} else {
			rest.Set(cpu)
		}
		n++
	}
	if n < 2 {
		return func() {}, nil
	}
	others = append([]int{os.Getpid()}, others...)
	together = func() {
		for _, pid := range append(others, measured...) {
			_ = pin(pid, &all)
		}
	}
	for _, pid := range measured {
		err = errors.Join(err, pin(pid, &first))
	}
	for _, pid := range others {
		err = errors.Join(err, pin(pid, &rest))
	}
	if err != nil {
		together()
		return nil, err
	}
	return together, nil
}

// pin binds all threads of a process, and so the threads that these start.
func pin(pid int, cpus *unix.CPUSet) error {
	threads, err := threadsOf(pid)
	if err != nil {
		return err
	}
	for _, tid := range threads {
		if err := unix.SchedSetaffinity(tid, cpus); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("bind process %d to processors: %w", pid, err)
		}
	}
	return nil
}
