// Command dashboard prints the Grafana dashboard of Highwater: `make dashboard` writes it to
// deploy/observe/dashboard.json.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

func main() {
	if err := write(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

// write writes the dashboard as JSON that Grafana imports.
func write(w io.Writer) error {
	d, err := build().Build()
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(d)
}

// query is a line, or several, of a panel. $I in it stands for the instances that are chosen.
type query struct{ expr, legend string }

// panel is one chart. Its description says what to make of what it shows.
type panel struct {
	title, unit, description string
	queries                  []query
}

// row is a heading with its panels.
type row struct {
	title  string
	panels []panel
}

const (
	each     = "{{instance}}"
	perRow   = 3
	columns  = 24 // of Grafana's grid
	quantile = "histogram_quantile(%s, sum by (le) (rate(highwater_wait_milliseconds_bucket{$I}[$__rate_interval]))) / 1000" +
		" or histogram_quantile(%[1]s, sum by (le) (rate(highwater_wait_seconds_bucket{$I}[$__rate_interval])))"
)

func waited(q string) string { return fmt.Sprintf(quantile, q) }

func rate(metric string) string { return "rate(" + metric + "{$I}[$__rate_interval])" }

// rows are the whole dashboard: first what concerns everybody, the companion's last.
func rows() []row {
	return []row{
		{"Is it doing harm?", []panel{
			{"Rejected", units.RequestsPerSecond, "0 in healthy traffic. In observe mode: what it would reject.", []query{{"sum by (reason) (" + rate("highwater_rejected_total") + ") > 0", "{{reason}}"}}},
			{"Admitted, and those that waited", units.RequestsPerSecond, "Waiting is how it avoids rejects.", []query{
				{"sum(" + rate("highwater_admitted_total") + ")", "admitted"}, {"sum(" + rate("highwater_throttled_total") + ")", "waited"},
			}},
			{"Time in the queue", units.Seconds, "At most throttle.timeout.", []query{{waited("0.5"), "median"}, {waited("0.99"), "99 of 100"}}},
			{"In the queue", units.Short, "Requests that wait now.", []query{{"highwater_waiting{$I}", each}}},
			{"Connections closed or refused", units.RequestsPerSecond, "Idle ones are closed from soft on. Others: the buffers are too large for the budget.", []query{
				{"sum(" + rate("highwater_closed_connections_total") + ")", "with a request"},
				{"sum(" + rate("highwater_closed_idle_total") + ")", "idle"},
				{"sum(" + rate("highwater_refused_connections_total") + ")", "new"},
			}},
			{"Rejected after the upstream had done its work", units.RequestsPerSecond, "Lower the buffers of the cluster and of HTTP/2.", []query{{rate("highwater_rejected_responses_total"), each}}},
		}},
		{"Is the budget right?", []panel{
			{"In use against the limit", units.PercentUnit, "Measured. Above 1 is over the limit.", []query{{"highwater_in_use_bytes{$I} / (highwater_limit_bytes{$I} > 0)", each}}},
			{"Memory", units.BytesIEC, "The estimate is the upper bound by which it decides.", []query{
				{"sum(highwater_limit_bytes{$I})", "limit"},
				{"sum(highwater_estimate_bytes{$I})", "estimate"},
				{"sum(highwater_in_use_bytes{$I})", "in use"},
				{"sum(highwater_allocated_bytes{$I})", "allocated"},
				{"sum(highwater_base_bytes{$I})", "without traffic"},
			}},
			{"What is not measured yet", units.BytesIEC, "Fresh has passed since the last reading, coming is still to come.", []query{
				{"sum(highwater_fresh_bytes{$I})", "fresh"}, {"sum(highwater_coming_bytes{$I})", "coming"}, {"sum(highwater_leaving_bytes{$I})", "leaving"},
			}},
			{"Surprise", units.BytesIEC, "If it stays high, buffers or costs are too low.", []query{{"highwater_surprise_bytes{$I}", each}}},
			{"Worst case, and highest reading", units.BytesIEC, "What live requests could come to hold, and what Envoy held at most so far.", []query{
				{"highwater_exposure_bytes{$I}", each + " worst case"}, {"highwater_peak_bytes{$I}", each + " peak"},
			}},
			{"Level", units.Short, "0 normal, 1 soft, 2 hard, 3 over.", []query{{"highwater_level{$I}", each}}},
		}},
		{"Does it work?", []panel{
			{"Blind, futile, impossible", units.Short, "1 is bad: no readings; traffic is not the cause; the budget cannot be held.", []query{
				{"highwater_blind{$I}", each + " blind"}, {"highwater_futile{$I}", each + " futile"}, {"highwater_budget_impossible{$I}", each + " impossible"},
			}},
			{"Enforcing", units.Short, "1: verdicts are carried out. 0: observe mode on every listener.", []query{{"highwater_enforcing{$I}", each}}},
			{"Age of the last reading", units.Seconds, "Above 2 s it is blind.", []query{
				{"highwater_reading_age_milliseconds{$I} / 1000 or highwater_reading_age_seconds{$I}", each},
			}},
			{"What fails", units.CountsPerSecond, "Now and then a reading: Envoy was busy.", []query{
				{"sum(" + rate("highwater_failed_readings_total") + ")", "readings"},
				{"sum(" + rate("highwater_host_errors_total") + ")", "calls of Envoy"},
				{"sum(" + rate("highwater_contention_total") + ")", "exchanges between workers"},
				{"sum(" + rate("highwater_bad_snapshots_total") + ")", "samples"},
			}},
			{"In flight", units.Short, "Requests, and connections with the network filter.", []query{
				{"sum(highwater_streams{$I})", "requests"}, {"sum(highwater_connections{$I})", "connections"},
			}},
			{"Memory of the virtual machines", units.BytesIEC, "The plugin's own. It is outside of every reading.", []query{{"highwater_vm_bytes{$I}", each}}},
		}},
		{"Companion", []panel{
			{"Container", units.BytesIEC, "What the kernel charges to Envoy, and the heap as Envoy sees it.", []query{
				{"highwater_container_limit_bytes{$I}", each + " limit"},
				{"highwater_container_working_set_bytes{$I}", each + " working set"},
				{"highwater_resident_bytes{$I}", each + " resident"},
				{"highwater_container_sock_bytes{$I}", each + " sockets"},
			}},
			{"Time to the limit", units.Seconds, "At the present growth. No line: it does not grow.", []query{{"highwater_time_to_limit_seconds{$I}", each}}},
			{"Growth that load does not explain, and leaks", units.BytesPerSecondIEC, "0: there is none.", []query{
				{"highwater_unexplained_growth_bytes_per_second{$I}", each + " growth"}, {"highwater_leak_bytes_per_second{$I}", each + " leak"},
			}},
			{"Envoy's own buffers", units.BytesIEC, "From Envoy's gauges.", []query{{"sum by (where) (highwater_buffered_bytes{$I})", "{{where}}"}}},
			{"Who holds the memory", units.BytesIEC, "By key. The ext_proc server alone; the plugin tells it at debug.path.", []query{{"topk(10, highwater_key_likely_bytes{$I})", "{{key}}"}}},
			{"Observations that fail", units.CountsPerSecond, "See /status.", []query{{"sum by (what) (" + rate("highwater_observer_failures_total") + ") > 0", "{{what}}"}}},
		}},
	}
}

func build() *dashboard.DashboardBuilder {
	source := common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${datasource}")}
	d := dashboard.NewDashboardBuilder("Highwater").Uid("highwater").Tags([]string{"envoy", "highwater"}).
		Description("Memory guard for Envoy: what it holds back, how full the budget is, and whether it works.").
		Time("now-1h", "now").Refresh("30s").Timezone("browser").Editable().Tooltip(dashboard.DashboardCursorSyncCrosshair).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Prometheus").Type("prometheus")).
		WithVariable(dashboard.NewQueryVariableBuilder("instance").Label("Envoy").Datasource(source).
			Query(dashboard.StringOrMap{String: cog.ToPtr("label_values(highwater_limit_bytes, instance)")}).
			Refresh(dashboard.VariableRefreshOnTimeRangeChanged).Sort(dashboard.VariableSortAlphabeticalAsc).
			Multi(true).IncludeAll(true).AllValue(".*"))
	for _, r := range rows() {
		d = d.WithRow(dashboard.NewRowBuilder(r.title))
		for _, p := range r.panels {
			d = d.WithPanel(chart(p, source))
		}
	}
	return d
}

func chart(p panel, source common.DataSourceRef) *timeseries.PanelBuilder {
	b := timeseries.NewPanelBuilder().Title(p.title).Description(p.description).Unit(p.unit).Datasource(source).
		Min(0).Height(8).Span(columns / perRow).LineWidth(1).FillOpacity(5).ShowPoints(common.VisibilityModeNever).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending))
	for _, q := range p.queries {
		b = b.WithTarget(prometheus.NewDataqueryBuilder().Datasource(source).LegendFormat(q.legend).
			Expr(strings.ReplaceAll(q.expr, "$I", `instance=~"$instance"`)))
	}
	return b
}
