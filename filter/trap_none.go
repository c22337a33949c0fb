//go:build !trap

package main

func trapRequest() {}

func trapTick() {}
