package cli

import (
	"regexp"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// withPulls is the pod with the pulls that run told as a reason, where all
// others see them as a message.
func withPulls(p *v1.Pod) *v1.Pod {
	p = p.DeepCopy()
	for _, list := range [][]v1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range list {
			if text := pulling(list[i].State.Waiting); text != "" {
				list[i].State.Waiting.Reason = text
			}
		}
	}
	return p
}

// pulling is "Pulling", or "Pulling:42%" once the size is known, while a
// container waits for its image. The agent says so in the message: the reason is
// kubelet's, which other clients know, and that has no word for it.
func pulling(w *v1.ContainerStateWaiting) string {
	if w == nil || w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
		return ""
	}
	m := pullMessage().FindStringSubmatch(w.Message)
	switch {
	case m == nil:
		return ""
	case m[1] == "":
		return "Pulling"
	}
	return "Pulling:" + m[1]
}

// pullMessage matches what pkg/images says of a pull that runs.
func pullMessage() *regexp.Regexp {
	return regexp.MustCompile(`^Pulling image "[^"]*"(?:$|: (?:(\d+%) \()?)`)
}

func age(now, t time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t))
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func podIP(p *v1.Pod) string {
	if len(p.Status.PodIPs) > 0 {
		return orNone(p.Status.PodIPs[0].IP)
	}
	return orNone(p.Status.PodIP)
}

// podType is what a Pod without kind, as in a list, is.
func podType() metav1.TypeMeta { return metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"} }
