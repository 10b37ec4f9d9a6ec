package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// series is one metric of a /metrics page: its name, and the values of its labels.
type series struct {
	name   string
	labels map[string]string
	value  string
}

var (
	seriesLine  = regexp.MustCompile(`(?m)^([a-z0-9_]+)(?:\{(.*)\})? (\S+)$`)
	labelPair   = regexp.MustCompile(`([a-z_]+)="((?:[^"\\]|\\.)*)"`)
	metricName  = regexp.MustCompile(`\b(?:kwaai|process|go|libp2p)_[a-z0-9_]+\b`)
	selector    = regexp.MustCompile(`\b([a-z][a-z0-9_]*)\{([^}]*)\}`)
	matcherPair = regexp.MustCompile(`([a-z_]+)(=~|!~|!=|=)"([^"]*)"`)
)

// scrape reads a node's /metrics.
func scrape(t testing.TB, apiAddr string) []series {
	t.Helper()
	resp, err := http.Get("http://" + apiAddr + "/metrics")
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	page, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	var list []series
	for _, m := range seriesLine.FindAllStringSubmatch(string(page), -1) {
		s := series{name: m[1], labels: map[string]string{}, value: m[3]}
		for _, l := range labelPair.FindAllStringSubmatch(m[2], -1) {
			s.labels[l[1]] = l[2]
		}
		list = append(list, s)
	}
	return list
}

// total adds up all series of a name.
func total(page []series, name string) (sum float64) {
	for _, s := range page {
		if v, err := strconv.ParseFloat(s.value, 64); s.name == name && err == nil {
			sum += v
		}
	}
	return sum
}

// expressions returns the PromQL of the alerts and of the dashboard.
func expressions(t *testing.T) []string {
	t.Helper()
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert       string
				Expr        string
				For         string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	text, err := os.ReadFile(filepath.Join("..", "..", "configs", "prometheus-rules.yml"))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &rules))
	var list []string
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			require.True(t, strings.HasPrefix(r.Alert, "Kwaaid"), r.Alert)
			require.Contains(t, []string{"page", "ticket", "info"}, r.Labels["severity"], r.Alert)
			require.NotEmpty(t, r.Annotations["summary"], r.Alert)
			require.NotEmpty(t, r.Annotations["remedy"], r.Alert)
			list = append(list, r.Expr)
		}
	}
	require.NotEmpty(t, list)
	alerts := len(list)

	text, err = os.ReadFile(filepath.Join("..", "..", "configs", "grafana-dashboard.json"))
	require.NoError(t, err)
	var dashboard any
	require.NoError(t, json.Unmarshal(text, &dashboard))
	var visit func(v any)
	visit = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if expr, ok := v["expr"].(string); ok {
				list = append(list, expr)
			}
			for _, x := range v {
				visit(x)
			}
		case []any:
			for _, x := range v {
				visit(x)
			}
		}
	}
	visit(dashboard)
	require.Greater(t, len(list), alerts)
	return list
}

// Alerts and dashboards over metrics that do not exist are silent, which looks as if all were well.
func TestMetrics_ThoseOfAlertsAndDashboardExist(t *testing.T) {
	h := startNode(t, "--expert", "checkpoint="+filepath.Join(fixtures, "tiny-mixtral-text")+",layers=0")
	scrape(t, h.API) // requests are counted by route once there were some
	page := scrape(t, h.API)
	known := map[string][]series{}
	for _, s := range page {
		known[s.name] = append(known[s.name], s)
	}
	for _, expr := range expressions(t) {
		for _, name := range metricName.FindAllString(expr, -1) {
			require.NotEmpty(t, known[name], "%s, in: %s", name, expr)
		}
		for _, m := range selector.FindAllStringSubmatch(expr, -1) {
			for _, match := range matcherPair.FindAllStringSubmatch(m[2], -1) {
				label, op, value := match[1], match[2], match[3]
				if label == "instance" || label == "job" {
					continue // Prometheus adds these
				}
				wanted := []string{value}
				if op == "=~" || op == "!~" {
					wanted = strings.Split(value, "|")
				}
				for _, v := range wanted {
					require.True(t, slices.ContainsFunc(known[m[1]], func(s series) bool { return s.labels[label] == v }),
						"%s has no %s=%q, in: %s", m[1], label, v, expr)
				}
			}
		}
	}
}
