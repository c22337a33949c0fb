//go:build !trap

package main

func trapped() {}
