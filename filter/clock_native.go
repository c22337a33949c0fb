//go:build !wasip1

package main

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
)

var started = time.Now() //nolint:forbidigo // this is where time comes from

// now lets the package compile outside Envoy, where nothing runs it.
func now() budget.Time { return time.Since(started) } //nolint:forbidigo // likewise

func wall() int64 { return time.Now().UnixNano() } //nolint:forbidigo // likewise
