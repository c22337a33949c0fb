package evidence

import (
	_ "embed"
	"encoding/json"
	"html/template"
	"io"

	"github.com/highwater-envoy/highwater/internal/unit"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"bytes": func(n int64) string { return unit.Bytes(n).Human() },
	"json": func(v any) string {
		text, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err.Error()
		}
		return string(text)
	},
}).Parse(pageText))

// page writes the summary of a bundle: one file that needs no other, and nothing from the network.
func page(w io.Writer, b *bundle, s Source, top []Holder) error {
	type bar struct {
		Holder
		Width int64 // percent of the largest
	}
	var bars []bar
	for _, h := range top {
		bars = append(bars, bar{h, 100 * max(h.Held, 0) / max(top[0].Held, 1)})
	}
	return pageTemplate.Execute(w, struct {
		Manifest
		Why      string
		Bars     []bar
		Known    bool
		Room     int64
		Cgroup   any
		Observed any
	}{b.manifest, why[b.manifest.Trigger], bars, s.Requests != nil, s.Room, s.Cgroup, s.Observed})
}

var why = map[Trigger]string{
	NearLimit: "Memory was growing so fast that it would soon have been at its limit.",
	Events:    "The kernel counted an event in memory.events of Envoy's cgroup.",
	Verdict:   "Memory grew in a way that load does not explain.",
	HighWater: "Memory in use had never been that high.",
}
