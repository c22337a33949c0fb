//go:build !wasip1

package main

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
)

// These let the package compile outside Envoy, where nothing runs them.

var started = time.Now() //nolint:forbidigo // this is where time comes from

func now() budget.Time { return time.Since(started) } //nolint:forbidigo // likewise

func wall() int64 { return time.Now().UnixNano() } //nolint:forbidigo // likewise

func propertyOf(string) (text string, ok bool) { return "", false }

func header(headerMap, string) (text string, ok bool) { return "", false }
