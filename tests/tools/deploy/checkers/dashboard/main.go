// Checks a Grafana dashboard against the types that Grafana publishes for dashboards, panels and queries
// (grafana-foundation-sdk): required, known and unknown fields, and their types; and against a few rules for panels.
//
//	dashboard FILE
//
// It prints each fault. Not checked here: words of which Grafana knows only some (the types do not list them), whether
// the expressions have data (tests/it/dashboard.rs), and what Grafana draws.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Println("usage: dashboard FILE")
		os.Exit(2)
	}
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	faults := append(typed(text), ruled(text)...)
	for _, fault := range faults {
		fmt.Println(fault)
	}
	if len(faults) > 0 {
		os.Exit(1)
	}
}

// What does not fit the types.
func typed(text []byte) []string {
	// Without them, options and queries of panels are not checked.
	plugins.RegisterDefaultPlugins()
	var read dashboard.Dashboard
	if err := read.UnmarshalJSONStrict(text); !isNone(err) {
		return []string{err.Error()}
	}
	if err := read.Validate(); !isNone(err) {
		return []string{err.Error()}
	}
	return nil
}

// Whether there is no error. A value without any is not always nil.
func isNone(err error) bool {
	var all cog.BuildErrors
	return err == nil || errors.As(err, &all) && len(all) == 0
}

type panel struct {
	ID          int
	Type        string
	Title       string
	Description string
	Datasource  struct{ UID string }
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ Expr string }
	FieldConfig struct{ Defaults struct{ Unit string } }
	Panels      []panel
}

// Which panels break a rule: unique ids, no overlaps, a title, a description, a unit, the data source and the job of the
// variables, and rates over $__rate_interval, which fits whatever the scrape interval is.
func ruled(text []byte) (faults []string) {
	var read struct{ Panels []panel }
	if err := json.Unmarshal(text, &read); err != nil {
		return []string{err.Error()}
	}
	all := flat(read.Panels)
	if len(all) == 0 {
		return []string{"there is no panel"}
	}
	for at, one := range all {
		complain := func(what string) {
			faults = append(faults, fmt.Sprintf("panel %d (%s): %s", one.ID, one.Title, what))
		}
		for _, other := range all[:at] {
			if one.ID == other.ID {
				complain("another one has this id")
			}
			if overlap(one, other) {
				complain("covers " + other.Title)
			}
		}
		if one.Title == "" {
			complain("has no title")
		}
		if one.Type == "row" {
			continue
		}
		if one.Description == "" {
			complain("has no description")
		}
		if one.FieldConfig.Defaults.Unit == "" {
			complain("has no unit")
		}
		if one.Datasource.UID != "${datasource}" {
			complain("is not of the data source ${datasource}")
		}
		if len(one.Targets) == 0 {
			complain("has no query")
		}
		for _, target := range one.Targets {
			if !strings.Contains(target.Expr, `job=~"$job"`) {
				complain("does not select the job: " + target.Expr)
			}
			if strings.Contains(target.Expr, "rate(") && !strings.Contains(target.Expr, "[$__rate_interval]") {
				complain("has a rate over a fixed range: " + target.Expr)
			}
		}
	}
	return faults
}

func flat(panels []panel) (all []panel) {
	for _, one := range panels {
		all = append(append(all, one), flat(one.Panels)...)
	}
	return all
}

func overlap(a, b panel) bool {
	p, q := a.GridPos, b.GridPos
	return p.X < q.X+q.W && q.X < p.X+p.W && p.Y < q.Y+q.H && q.Y < p.Y+p.H
}
