//go:build race

package main

// mayGrow is by how many MiB the server may grow under an attack. The race detector keeps some
// bytes for each.
const mayGrow = 320
