//go:build bench

package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
)

// bareProgram is one that loads rules for Services of two endpoints and no more:
// no masquerade, no affinity, no refusal. What a proxy adds is on top of it.
type bareProgram struct {
	name   string // of its column
	legacy bool
	load   []string // the command that reads a file
	all    func(size int) string
	more   func(i int) string
}

func bareFloors() []bareProgram {
	restore := []string{"iptables-restore", "--wait", "--noflush"}
	return []bareProgram{
		{"floor nft", false, []string{"nft", "-f"}, nftAll, nftMore},
		{"floor iptables-nft", false, restore, iptablesAll, iptablesMore},
		{"floor iptables-legacy", true, restore, iptablesAll, iptablesMore},
	}
}

// measureFloors loads everything into a node of its own, and then some more
// Services one by one.
func measureFloors(t *testing.T, r results, size, samples int) {
	for _, f := range bareFloors() {
		t.Run(f.name, func(t *testing.T) {
			s := newStand(t, nil, f.legacy)
			load := func(text string) float64 {
				file := s.n.Path("rules")
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
				args := slices.Concat([]string{"PATH=" + s.path}, f.load, []string{file})
				began := time.Now()
				if _, err := s.n.Exec("env", args...); err != nil {
					t.Fatal(err)
				}
				return time.Since(began).Seconds()
			}
			r.add(sized("first", size), f.name, load(f.all(size)))
			if rules, _, elements := s.kernel(f.load[0] != "nft"); rules+elements < 2*size {
				t.Fatalf("%d rules and %d elements are in the kernel for %d Services", rules, elements, size)
			}
			for i := range samples {
				r.add(sized("new", size), f.name, 1000*load(f.more(size+i)))
			}
		})
	}
}

// measureBare measures what no program can leave out of a first sync: to receive
// the objects, and to have iptables-restore load the rules that are in st's
// kernel now, which are more than those of a bareProgram.
func (c *cluster) measureBare(t *testing.T, r results, p proxy, st *stand, size int) {
	rules, err := st.n.Exec("env", "PATH="+st.path, "iptables-save", "-t", "nat")
	if err != nil {
		t.Fatal(err)
	}
	other := newStand(t, nil, p.legacy)
	file := other.n.Path("rules")
	if err := os.WriteFile(file, []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := c.receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.add(sized("received", size), p.name, time.Since(began).Seconds())
	began = time.Now()
	if _, err := other.n.Exec("env", "PATH="+other.path, "iptables-restore", "--wait", "--noflush", file); err != nil {
		t.Fatal(err)
	}
	r.add(sized("loaded", size), p.name, time.Since(began).Seconds())
}

// receive receives all Services and EndpointSlices, and drops them.
func (c *cluster) receive(ctx context.Context) error {
	ctx, cancel := context.WithCancel(logr.NewContext(ctx, logr.Discard())) // its end is no error to tell of
	defer cancel()
	var all []nowhere
	for resource, of := range map[string]struct {
		client cache.Getter
		object runtime.Object
	}{
		"services":       {c.cp.Client().CoreV1().RESTClient(), &corev1.Service{}},
		"endpointslices": {c.cp.Client().DiscoveryV1().RESTClient(), &discoveryv1.EndpointSlice{}},
	} {
		n := nowhere{make(chan struct{}, 1)}
		all = append(all, n)
		from := cache.NewListWatchFromClient(of.client, resource, "", fields.Everything())
		go cache.NewReflectorWithOptions(from, of.object, n, cache.ReflectorOptions{}).RunWithContext(ctx)
	}
	for _, n := range all {
		select {
		case <-n.complete:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// nowhere is a store that keeps nothing.
type nowhere struct{ complete chan struct{} }

func (nowhere) Add(any) error    { return nil }
func (nowhere) Update(any) error { return nil }
func (nowhere) Delete(any) error { return nil }
func (nowhere) Resync() error    { return nil }
func (n nowhere) Replace([]any, string) error {
	select {
	case n.complete <- struct{}{}:
	default:
	}
	return nil
}

// Transformer lets go of the objects of a streaming list as they come.
func (nowhere) Transformer() cache.TransformFunc {
	return func(any) (any, error) { return &metav1.ObjectMeta{}, nil }
}

func serviceIP(i int) string { return fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255) }

// nftAll is the shape of constant rules: one map from the Service to the chain
// of its endpoint count, one from the Service and a random slot to the endpoint.
func nftAll(size int) string {
	var b strings.Builder
	b.WriteString(`table ip bare {
 map endpoints { typeof ip daddr . ip protocol . th dport . numgen random mod 2 : ip daddr . th dport; }
 map services { typeof ip daddr . ip protocol . th dport : verdict; }
 chain two { dnat ip to ip daddr . ip protocol . th dport . numgen random mod 2 map @endpoints; }
 chain pre { type nat hook prerouting priority dstnat; ip daddr . ip protocol . th dport vmap @services; }
 chain out { type nat hook output priority -100; ip daddr . ip protocol . th dport vmap @services; }
}
`)
	if size > 0 {
		nftElements(&b, 0, size)
	}
	return b.String()
}

func nftMore(i int) string {
	var b strings.Builder
	nftElements(&b, i, i+1)
	return b.String()
}

func nftElements(b *strings.Builder, from, to int) {
	var endpoints, services []string
	for i := from; i < to; i++ {
		for slot, addr := range filler(i&0xffff, 0) {
			endpoints = append(endpoints, fmt.Sprintf("%s . tcp . 80 . %d : %s . 8080", serviceIP(i), slot, addr))
		}
		services = append(services, fmt.Sprintf("%s . tcp . 80 : goto two", serviceIP(i)))
	}
	fmt.Fprintf(b, "add element ip bare endpoints { %s }\n", strings.Join(endpoints, ",\n"))
	fmt.Fprintf(b, "add element ip bare services { %s }\n", strings.Join(services, ",\n"))
}

// iptablesAll is a tree of chains by prefix, /24 and /29, with two DNAT rules
// for each Service in the leaf.
func iptablesAll(size int) string {
	var chains, rules strings.Builder
	chains.WriteString("*nat\n:BARE - [0:0]\n")
	rules.WriteString("-A PREROUTING -j BARE\n-A OUTPUT -j BARE\n")
	for i := range size {
		if i%256 == 0 {
			fmt.Fprintf(&chains, ":B%d - [0:0]\n", i/256)
			fmt.Fprintf(&rules, "-A BARE -d %s/24 -j B%d\n", serviceIP(i), i/256)
		}
		if i%8 == 0 {
			fmt.Fprintf(&chains, ":L%d - [0:0]\n", i/8)
			fmt.Fprintf(&rules, "-A B%d -d %s/29 -j L%d\n", i/256, serviceIP(i), i/8)
		}
		leaf(&rules, i, i/8)
	}
	return chains.String() + rules.String() + "COMMIT\n"
}

// iptablesMore begins a leaf of its own, which the next Services share.
func iptablesMore(i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*nat\n:M%d - [0:0]\n-A BARE -d %s/32 -j M%d\n", i, serviceIP(i), i)
	for n, addr := range filler(i&0xffff, 0) {
		fmt.Fprintf(&b, "-A M%d -p tcp --dport 80 %s-j DNAT --to-destination %s:8080\n", i, half(n), addr)
	}
	return b.String() + "COMMIT\n"
}

func leaf(b *strings.Builder, i, chain int) {
	for n, addr := range filler(i&0xffff, 0) {
		fmt.Fprintf(b, "-A L%d -d %s/32 -p tcp --dport 80 %s-j DNAT --to-destination %s:8080\n", chain, serviceIP(i), half(n), addr)
	}
}

// half lets the first of two rules have half of the connections.
func half(n int) string {
	if n == 0 {
		return "-m statistic --mode random --probability 0.5 "
	}
	return ""
}
