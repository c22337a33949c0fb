// Command envoy-path prints the path of the Envoy to test with and nothing else on stdout. It
// fetches Envoy if need be and tells stderr so.
//
//	envoy-path [version]
//
// With a version it is that one, whatever $ENVOY_PATH says.
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

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	find := envoybin.Path
	if len(args) == 1 {
		find = func(ctx context.Context, progress io.Writer) (string, error) {
			return envoybin.PathOf(ctx, args[0], progress)
		}
	}
	path, err := find(ctx, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "envoy-path:", err)
		return 1
	}
	fmt.Fprintln(stdout, path)
	return 0
}
