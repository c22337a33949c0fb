package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
	"github.com/highwater-envoy/highwater/internal/process"
)

func TestZZ(t *testing.T) {
	if os.Getenv("ZZ") == "" {
		return
	}
	up, _ := load.NewUpstream()
	defer up.Close()
	size, _ := map[string]int64{"GET": 1000, "MB": mb}[os.Getenv("ZZ")]
	for _, name := range []string{"none", "module"} {
		v := &variant{name: name, face: envoytest.Module, edit: func(c envoytest.Config) {
			if name == "none" {
				c.RemoveGuard()
			}
		}}
		if err := v.run(t.Context(), up.Addr(), 2); err != nil {
			t.Fatal(err)
		}
		defer v.envoy.Stop()
		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
		d := &load.Downloads{Addr: v.envoy.Addr("ingress"), Clients: 8, Size: size}
		go func() {
			time.Sleep(2 * time.Second)
			if os.Getenv("NOPERF") != "" {
				return
			}
			out, err := exec.Command("perf", "record", "-F", "1500", "-g", "-o", "/tmp/w/safety-out/perf."+os.Getenv("ZZ")+"."+name, "-p", fmt.Sprint(v.envoy.PID()), "--", "sleep", "8").CombinedOutput()
			fmt.Println(string(out), err)
		}()
		go func() {
			sum := func() map[string]int {
				m := map[string]int{}
				tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", v.envoy.PID()))
				for _, d := range tasks {
					b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", v.envoy.PID(), d.Name()))
					var n string
					var vol int
					for _, l := range strings.Split(string(b), "\n") {
						fmt.Sscanf(l, "Name:\t%s", &n)
						fmt.Sscanf(l, "voluntary_ctxt_switches:\t%d", &vol)
					}
					m[n+" "+d.Name()] = vol
				}
				return m
			}
			time.Sleep(2 * time.Second)
			a := sum()
			time.Sleep(8 * time.Second)
			b := sum()
			for k, n := range b {
				if n-a[k] > 40 {
					fmt.Println(name, k, (n-a[k])/8)
				}
			}
		}()
		before, _ := process.CPU(v.envoy.PID())
		d.Run(ctx)
		after, _ := process.CPU(v.envoy.PID())
		s := d.Snapshot()
		fmt.Println(name, s.Served, float64((after-before).Microseconds())/float64(s.Served))
		cancel()
		v.envoy.Stop()
	}
}
