//go:build !race

package main

// mayGrow is by how many MiB the server may grow under an attack: 512 connections and what each is
// answered.
const mayGrow = 40
