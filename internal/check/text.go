package check

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// maxPlaces is how many places of a finding are told to people; JSON has all.
const maxPlaces = 6

// Print writes a report for people.
func (r *Report) Print(w io.Writer) {
	of := "a configuration of Envoy"
	if r.Running {
		of = "a running Envoy"
	}
	fmt.Fprintf(w, "%s, judged by the defaults of %s: %d listener(s), %d cluster(s), some %s without traffic\n", of, r.Envoy, len(r.Listeners), r.Clusters.Count, r.Base.Human())
	fmt.Fprintf(w, "\n%s\n", r.Verdict)
	r.printWorst(w)
	if len(r.Findings) > 0 {
		fmt.Fprintln(w)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s %s: %s", f.Severity, f.Name, f.What)
		if f.Write != "" {
			fmt.Fprintf(w, ". Write: %s", f.Write)
		}
		fmt.Fprintln(w)
		for i, p := range f.Places {
			if i == maxPlaces && len(f.Places) > maxPlaces+1 {
				fmt.Fprintf(w, "    and %d more\n", len(f.Places)-i)
				break
			}
			if i < len(f.Lines) && f.Lines[i] > 0 {
				p = fmt.Sprintf("%s:%d: %s", r.File, f.Lines[i], p)
			}
			fmt.Fprintf(w, "    %s\n", p)
		}
	}
	for _, p := range r.Paste {
		fmt.Fprintf(w, "\n# %s\n%s", p.Where, p.YAML)
	}
	count := map[Severity]int{}
	for _, f := range r.Findings {
		count[f.Severity]++
	}
	fmt.Fprintf(w, "\nerrors: %d, warnings: %d, notes: %d\n", count[Error], count[Warning], count[Note])
}

// printWorst writes the worst cases as tables.
func (r *Report) printWorst(w io.Writer) {
	if len(r.Listeners) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nat most, of one connection\tHTTP/1\tHTTP/2\tTCP\tkernel\tconnections\tall of them\tguard")
	for i, l := range r.Listeners {
		if i == maxListeners {
			fmt.Fprintf(t, "and %d more\n", len(r.Listeners)-i)
			break
		}
		connections := "no limit"
		if l.Connections > 0 {
			connections = fmt.Sprint(l.Connections)
		}
		guard := l.Guard
		if guard == "" {
			guard = "none"
		}
		fmt.Fprintf(t, "%s\t%v\t%v\t%v\t%v\t%s\t%v\t%s\n", l.Name, l.HTTP1, l.HTTP2, l.TCP, l.Kernel, connections, l.All, guard)
	}
	if len(r.Clusters.Largest) > 0 {
		fmt.Fprintln(t, "\nat most, of a cluster\tone response\trequests\tall of them")
	}
	for _, c := range r.Clusters.Largest {
		requests := "no limit"
		if c.Requests > 0 {
			requests = fmt.Sprint(c.Requests)
		}
		fmt.Fprintf(t, "%s\t%v\t%s\t%v\n", c.Name, c.Response, requests, c.All)
	}
	_ = t.Flush()
}

// maxListeners is how many listeners are told one by one to people.
const maxListeners = 20
