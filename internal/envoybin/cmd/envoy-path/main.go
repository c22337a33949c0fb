// Command envoy-path prints the path of the Envoy to test with and nothing else on stdout. It fetches Envoy if need be and tells stderr so.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/highwater-envoy/highwater/internal/envoybin"
)

func main() { os.Exit(run(os.Stdout, os.Stderr)) }

func run(stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	path, err := envoybin.Path(ctx, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "envoy-path:", err)
		return 1
	}
	fmt.Fprintln(stdout, path)
	return 0
}
