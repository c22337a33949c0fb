//go:build !trap

package main

func trapRequest(*stream) {}

func trapTick() {}

func trapClock() {}
