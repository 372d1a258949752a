package cli

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// answers has the agent answer these paths.
func (f *fakeAgent) answers(paths map[string]string) {
	f.extra = func(w http.ResponseWriter, r *http.Request) bool {
		text, ok := paths[r.URL.Path]
		if ok {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, text)
		}
		return ok
	}
}

func podMetrics(namespace, name string, usage ...string) string {
	var containers []string
	for i, u := range usage {
		cpu, memory, _ := strings.Cut(u, " ")
		containers = append(containers, fmt.Sprintf(`{"name":"c%d","usage":{"cpu":%q,"memory":%q}}`, i, cpu, memory))
	}
	return fmt.Sprintf(`{"metadata":{"namespace":%q,"name":%q},"window":"15s","containers":[%s]}`, namespace, name, strings.Join(containers, ","))
}

func TestTop(t *testing.T) {
	f, c, out, _ := newFake(t)
	web, db := podMetrics("default", "web", "250500000n 20Mi", "1m 5Mi"), podMetrics("default", "db", "2 1Gi")
	other := podMetrics("kube-system", "dns", "10m 3000Ki")
	f.answers(map[string]string{
		metricsPath + "/namespaces/default/pods":     `{"items":[` + web + "," + db + `]}`,
		metricsPath + "/namespaces/default/pods/web": web,
		metricsPath + "/pods":                        `{"items":[` + other + "," + web + `]}`,
		metricsPath + "/nodes":                       `{"items":[{"metadata":{"name":"node-1"},"usage":{"cpu":"500m","memory":"1Gi"}}]}`,
		"/api/v1/nodes":                              `{"items":[{"metadata":{"name":"node-1"},"status":{"allocatable":{"cpu":"2","memory":"4Gi"}}}]}`,
	})
	for _, tc := range []struct {
		name string
		o    TopOptions
		node bool
		want []string
	}{
		{o: TopOptions{}, want: []string{"NAME CPU(cores) MEMORY(bytes)", "db 2000m 1024Mi", "web 252m 25Mi"}},
		{o: TopOptions{SortBy: "memory", NoHeaders: true}, want: []string{"db 2000m 1024Mi", "web 252m 25Mi"}},
		{o: TopOptions{AllNamespaces: true, SortBy: "cpu"}, want: []string{"NAMESPACE NAME CPU(cores) MEMORY(bytes)", "default web 252m 25Mi", "kube-system dns 10m 2Mi"}},
		{name: "web", o: TopOptions{Containers: true}, want: []string{"POD NAME CPU(cores) MEMORY(bytes)", "web c0 251m 20Mi", "web c1 1m 5Mi"}},
		{node: true, want: []string{"NAME CPU(cores) CPU(%) MEMORY(bytes) MEMORY(%)", "node-1 500m 25% 1024Mi 25%"}},
	} {
		out.Reset()
		top := c.TopPods
		if tc.node {
			top = c.TopNode
		}
		if err := top(t.Context(), tc.name, tc.o); err != nil {
			t.Errorf("%+v: %v", tc.o, err)
			continue
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			got = append(got, strings.Join(strings.Fields(line), " "))
		}
		if strings.Join(got, "\n") != strings.Join(tc.want, "\n") {
			t.Errorf("%+v:\n%s\nwant\n%s", tc.o, strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
		}
	}
	for what, err := range map[string]error{
		"--sort-by disk":      c.TopPods(t.Context(), "", TopOptions{SortBy: "disk"}),
		"a name and -A":       c.TopPods(t.Context(), "web", TopOptions{AllNamespaces: true}),
		"a pod that is none":  c.TopPods(t.Context(), "none", TopOptions{}),
		"a node that is none": c.TopNode(t.Context(), "none", TopOptions{}),
	} {
		if err == nil {
			t.Errorf("%s is no error", what)
		}
	}
}
