package manifest

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// validateLives checks what a container that goes on may have beside one that
// ends by itself: probes and hooks.
func validateLives(spec *v1.PodSpec, c *v1.Container, p *field.Path) field.ErrorList {
	grace := spec.TerminationGracePeriodSeconds
	errs := validateHooks(spec, c.Lifecycle, grace, p.Child("lifecycle"))
	errs = append(errs, validateEndingProbe(c.LivenessProbe, p.Child("livenessProbe"))...)
	errs = append(errs, validateReadinessProbe(c.ReadinessProbe, p.Child("readinessProbe"))...)
	errs = append(errs, validateEndingProbe(c.StartupProbe, p.Child("startupProbe"))...)
	errs = append(errs, validateResizePolicy(c.ResizePolicy, spec.RestartPolicy == v1.RestartPolicyNever, p.Child("resizePolicy"))...)
	return append(errs, validateRestarts(c, false, p)...)
}

// validateInitLives is validateLives for an init container: only a sidecar goes on.
func validateInitLives(spec *v1.PodSpec, c *v1.Container, p *field.Path) (errs field.ErrorList) {
	if pod.IsSidecar(c) {
		return validateLives(spec, c, p)
	}
	for _, f := range []struct {
		name string
		set  bool
	}{{"lifecycle", c.Lifecycle != nil}, {"livenessProbe", c.LivenessProbe != nil},
		{"readinessProbe", c.ReadinessProbe != nil}, {"startupProbe", c.StartupProbe != nil}} {
		if f.set {
			errs = append(errs, field.Forbidden(p.Child(f.name), "is for init containers with restartPolicy Always only: any other one ends by itself"))
		}
	}
	at := p.Child("resizePolicy")
	errs = append(errs, validateResizePolicy(c.ResizePolicy, spec.RestartPolicy == v1.RestartPolicyNever, at)...)
	for i, r := range c.ResizePolicy {
		if r.RestartPolicy == v1.RestartContainer {
			errs = append(errs, field.Invalid(at.Index(i).Child("restartPolicy"), r.RestartPolicy, "is for containers that go on: an init container that ends is not begun again"))
		}
	}
	return append(errs, validateRestarts(c, true, p)...)
}

// validateEndingProbe checks a probe that ends its container when it fails.
func validateEndingProbe(probe *v1.Probe, p *field.Path) field.ErrorList {
	if probe == nil {
		return nil
	}
	errs := validateProbe(probe, p)
	if probe.SuccessThreshold != 1 {
		errs = append(errs, field.Invalid(p.Child("successThreshold"), probe.SuccessThreshold, "must be 1"))
	}
	return errs
}

func validateHooks(spec *v1.PodSpec, l *v1.Lifecycle, grace *int64, p *field.Path) (errs field.ErrorList) {
	if l == nil {
		return nil
	}
	hook := func(h *v1.LifecycleHandler, at *field.Path) {
		if h != nil {
			errs = append(errs, validateHandler(handler{exec: h.Exec, httpGet: h.HTTPGet, tcpSocket: h.TCPSocket, sleep: h.Sleep}, grace, at)...)
		}
	}
	hook(l.PostStart, p.Child("postStart"))
	hook(l.PreStop, p.Child("preStop"))
	switch at := p.Child("stopSignal"); {
	case l.StopSignal == nil:
	case spec.OS == nil:
		errs = append(errs, field.Forbidden(at, "needs spec.os.name: what a signal is depends on it"))
	case spec.OS.Name == v1.Linux && !knownSignal(*l.StopSignal):
		errs = append(errs, field.Invalid(at, *l.StopSignal, "is no signal: use a name such as SIGUSR1"))
	}
	return errs
}

// signals are the API's names of Linux' signals, without those of real time.
const signals = " SIGABRT SIGALRM SIGBUS SIGCHLD SIGCLD SIGCONT SIGFPE SIGHUP SIGILL SIGINT SIGIO SIGIOT SIGKILL SIGPIPE SIGPOLL" +
	" SIGPROF SIGPWR SIGQUIT SIGSEGV SIGSTKFLT SIGSTOP SIGSYS SIGTERM SIGTRAP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGUSR1 SIGUSR2" +
	" SIGVTALRM SIGWINCH SIGXCPU SIGXFSZ SIGRTMIN SIGRTMAX "

func knownSignal(s v1.Signal) bool {
	name := string(s)
	for prefix, most := range map[string]int{"SIGRTMIN+": 15, "SIGRTMAX-": 14} {
		if digits, ok := strings.CutPrefix(name, prefix); ok {
			n, err := strconv.Atoi(digits)
			return err == nil && n > 0 && n <= most && strconv.Itoa(n) == digits
		}
	}
	return name != "" && !strings.Contains(name, " ") && strings.Contains(signals, " "+name+" ")
}

// Limits of the API on restart rules.
const (
	maxRules     = 20
	maxExitCodes = 255
)

func validateRestarts(c *v1.Container, init bool, p *field.Path) (errs field.ErrorList) {
	at := p.Child("restartPolicy")
	switch {
	case c.RestartPolicy == nil && len(c.RestartPolicyRules) == 0:
		return nil
	case c.RestartPolicy == nil:
		errs = append(errs, field.Required(at, "restartPolicyRules need it: it holds where no rule matches"))
		if init {
			return errs // the API server looks no further
		}
	case *c.RestartPolicy == "":
		errs = append(errs, field.NotSupported(at, *c.RestartPolicy, restartPolicies))
	default:
		errs = append(errs, oneOf(*c.RestartPolicy, at, restartPolicies...)...)
	}
	return append(errs, validateRules(c.RestartPolicyRules, p.Child("restartPolicyRules"))...)
}

var restartPolicies = []v1.ContainerRestartPolicy{v1.ContainerRestartPolicyAlways, v1.ContainerRestartPolicyNever, v1.ContainerRestartPolicyOnFailure}

func validateRules(rules []v1.ContainerRestartRule, p *field.Path) (errs field.ErrorList) {
	if len(rules) > maxRules {
		errs = append(errs, field.TooMany(p, len(rules), maxRules))
	}
	actions := []v1.ContainerRestartRuleAction{v1.ContainerRestartRuleActionRestart, v1.ContainerRestartRuleActionRestartAllContainers}
	operators := []v1.ContainerRestartRuleOnExitCodesOperator{v1.ContainerRestartRuleOnExitCodesOpIn, v1.ContainerRestartRuleOnExitCodesOpNotIn}
	for i, r := range rules {
		at := p.Index(i)
		errs = append(errs, oneOf(r.Action, at.Child("action"), actions...)...)
		codes := at.Child("exitCodes")
		if r.ExitCodes == nil {
			errs = append(errs, field.Required(codes, "a rule is about exit codes"))
			continue
		}
		errs = append(errs, oneOf(r.ExitCodes.Operator, codes.Child("operator"), operators...)...)
		if n := len(r.ExitCodes.Values); n > maxExitCodes {
			errs = append(errs, field.TooMany(codes.Child("values"), n, maxExitCodes))
		}
	}
	return errs
}

// validatePodLife checks what a pod says of its life as a whole.
func validatePodLife(spec *v1.PodSpec, p *field.Path) (errs field.ErrorList) {
	if s := spec.ActiveDeadlineSeconds; s != nil && (*s < 1 || *s > math.MaxInt32) {
		errs = append(errs, field.Invalid(p.Child("activeDeadlineSeconds"), *s, validation.InclusiveRangeError(1, math.MaxInt32)))
	}
	for i, g := range spec.ReadinessGates {
		at := p.Child("readinessGates").Index(i).Child("conditionType")
		errs = append(errs, invalid(at, g.ConditionType, validation.IsQualifiedName(string(g.ConditionType)))...)
	}
	if spec.OS != nil && spec.OS.Name == "" {
		errs = append(errs, field.Required(p.Child("os", "name"), ""))
	}
	name, at := spec.HostnameOverride, p.Child("hostnameOverride")
	if name == nil {
		return errs
	}
	if spec.SetHostnameAsFQDN != nil && *spec.SetHostnameAsFQDN {
		errs = append(errs, field.Forbidden(at, "cannot be combined with setHostnameAsFQDN"))
	}
	if spec.HostNetwork {
		errs = append(errs, field.Forbidden(at, "cannot be combined with hostNetwork: the pod has the node's name"))
	}
	if len(*name) > pod.MaxFQDN {
		errs = append(errs, field.TooLong(at, *name, pod.MaxFQDN))
	}
	return append(errs, invalid(at, *name, validation.IsDNS1123Subdomain(*name))...)
}

// validateProbePeriods checks our own annotations, which name a container and a
// probe that it has.
func validateProbePeriods(p *v1.Pod, at *field.Path) (errs field.ErrorList) {
	for key, value := range p.Annotations {
		kind, name, ok := pod.ProbeOfPeriodKey(key)
		if !ok {
			continue
		}
		if c, _, found := pod.Container(p, name); !found || probeOf(c, kind) == nil {
			errs = append(errs, field.Invalid(at.Key(key), value, fmt.Sprintf("the pod has no container %q with a probe of kind %q (startup, liveness, readiness)", name, kind)))
			continue
		}
		if d, err := time.ParseDuration(value); err != nil || d < pod.MinProbePeriod {
			errs = append(errs, field.Invalid(at.Key(key), value, fmt.Sprintf("must be a duration such as 200ms, and at least %s", pod.MinProbePeriod)))
		}
	}
	return errs
}

func probeOf(c *v1.Container, kind string) *v1.Probe {
	return map[string]*v1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe}[kind]
}

// validateDeadlineUpdate lets activeDeadlineSeconds be set and shortened; stop
// says that the API server looks no further.
func validateDeadlineUpdate(now, was *int64, p *field.Path) (errs field.ErrorList, stop bool) {
	switch {
	case now == nil && was != nil:
		return field.ErrorList{field.Invalid(p, now, "cannot be taken away again")}, false
	case now == nil:
		return nil, false
	case *now < 0 || *now > math.MaxInt32:
		return field.ErrorList{field.Invalid(p, *now, validation.InclusiveRangeError(0, math.MaxInt32))}, true
	case was != nil && *was < *now:
		return field.ErrorList{field.Invalid(p, *now, fmt.Sprintf("can be shortened only: it was %d", *was))}, true
	}
	return nil, false
}

// validateResizePolicy checks what becomes of a container whose resources
// change. Places of errors are the API server's.
func validateResizePolicy(list []v1.ContainerResizePolicy, never bool, p *field.Path) (errs field.ErrorList) {
	seen := map[v1.ResourceName]bool{}
	for i, r := range list {
		if seen[r.ResourceName] {
			errs = append(errs, field.Duplicate(p.Index(i), r.ResourceName))
		}
		seen[r.ResourceName] = true
		errs = append(errs, oneOf(r.ResourceName, p, v1.ResourceCPU, v1.ResourceMemory)...)
		errs = append(errs, oneOf(r.RestartPolicy, p, v1.NotRequired, v1.RestartContainer)...)
		if never && r.RestartPolicy != v1.NotRequired {
			errs = append(errs, field.Invalid(p, r.RestartPolicy, "must be NotRequired in a pod that restarts nothing"))
		}
	}
	return errs
}
