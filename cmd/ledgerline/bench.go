package main

import (
	"context"
	"io"
)

func benchCommand(_ context.Context, _ []string, _ func(string) string, _, _ io.Writer) error {
	return usagef("bench: see make bench")
}
