package manifest

import (
	"reflect"
	"slices"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// typeFields says of one API type which of its fields this agent serves. Every
// field of the type is in exactly one of the lists (a test compares them with
// k8s.io/api), so that a new Kubernetes release cannot add a field that is
// silently ignored.
type typeFields struct {
	of any
	// supported fields are decoded, defaulted, validated and acted on.
	supported string
	// serverSide fields are what an API server writes; they are accepted, so
	// that the output of "kubectl get -o yaml" is a manifest, and dropped.
	serverSide string
	// refused fields are valid Kubernetes that this agent does not do.
	refused string
}

// supportTable is the list of what a manifest may hold. To support a field,
// move its name to supported, add its type when that is new, its defaults to
// Default and its rules to Validate. Kinds beside Pod have their rows with them.
var supportTable = sync.OnceValue(func() []typeFields {
	table := podRows()
	for _, k := range kinds() {
		table = append(table, k.fields...)
	}
	return table
})

// podRows are those of a Pod, the rows that have files of their own included.
func podRows() []typeFields {
	return slices.Concat(podFields, envFields, affinityFields, spreadFields, volumeFields, fieldRefFields)
}

var podFields = []typeFields{
	{of: v1.Pod{},
		supported:  "apiVersion kind metadata spec",
		serverSide: "status"},

	{of: metav1.ObjectMeta{},
		supported: "name generateName namespace uid labels annotations",
		serverSide: "selfLink resourceVersion generation creationTimestamp deletionTimestamp " +
			"deletionGracePeriodSeconds managedFields",
		refused: "ownerReferences finalizers"},

	{of: v1.PodSpec{},
		supported: "volumes initContainers containers restartPolicy terminationGracePeriodSeconds " +
			"dnsPolicy nodeSelector serviceAccountName serviceAccount automountServiceAccountToken " +
			"nodeName hostNetwork hostPID hostIPC shareProcessNamespace securityContext " +
			"schedulerName tolerations priorityClassName priority enableServiceLinks hostname subdomain " +
			"dnsConfig hostAliases activeDeadlineSeconds readinessGates setHostnameAsFQDN hostnameOverride os hostUsers runtimeClassName overhead affinity resources imagePullSecrets preemptionPolicy topologySpreadConstraints",
		refused: "ephemeralContainers " +
			"schedulingGates resourceClaims schedulingGroup evictionResponders"},

	{of: v1.LocalObjectReference{},
		supported: "name"},

	{of: v1.Container{},
		supported: "name image command args workingDir ports env envFrom resources volumeMounts volumeDevices " +
			"terminationMessagePath terminationMessagePolicy imagePullPolicy securityContext " +
			"stdin stdinOnce tty readinessProbe livenessProbe startupProbe lifecycle restartPolicy restartPolicyRules resizePolicy"},

	{of: v1.ContainerPort{},
		supported: "name hostPort containerPort protocol hostIP"},

	{of: v1.ResourceRequirements{},
		supported: "limits requests",
		refused:   "claims"},

	{of: v1.VolumeMount{},
		supported: "name readOnly recursiveReadOnly mountPath subPath subPathExpr mountPropagation",
		refused:   "bindMountOptions"},

	{of: v1.VolumeDevice{},
		supported: "name devicePath"},

	// terminationGracePeriodSeconds is Validate's to refuse: no readiness probe
	// may have it.
	{of: v1.Probe{},
		supported: "initialDelaySeconds timeoutSeconds periodSeconds successThreshold failureThreshold " +
			"terminationGracePeriodSeconds"},

	{of: v1.ProbeHandler{},
		supported: "exec httpGet tcpSocket grpc"},

	{of: v1.ExecAction{},
		supported: "command"},

	{of: v1.HTTPGetAction{},
		supported: "path port host scheme httpHeaders",
		refused:   "protocol"},

	{of: v1.HTTPHeader{},
		supported: "name value"},

	{of: v1.TCPSocketAction{},
		supported: "port host"},

	{of: v1.GRPCAction{},
		supported: "port service",
		refused:   "mode"},

	{of: v1.Lifecycle{},
		supported: "postStart preStop stopSignal"},

	{of: v1.LifecycleHandler{},
		supported: "exec httpGet tcpSocket sleep"},

	{of: v1.SleepAction{},
		supported: "seconds"},

	{of: v1.ContainerRestartRule{},
		supported: "action exitCodes"},

	{of: v1.ContainerRestartRuleOnExitCodes{},
		supported: "operator values"},

	{of: v1.ContainerResizePolicy{},
		supported: "resourceName restartPolicy"},

	{of: v1.PodReadinessGate{},
		supported: "conditionType"},

	{of: v1.PodOS{},
		supported: "name"},

	{of: v1.PodDNSConfig{},
		supported: "nameservers searches options"},

	{of: v1.PodDNSConfigOption{},
		supported: "name value"},

	{of: v1.HostAlias{},
		supported: "ip hostnames"},

	{of: v1.Toleration{},
		supported: "key operator value effect tolerationSeconds"},

	{of: v1.PodSecurityContext{},
		supported: "seLinuxOptions seLinuxChangePolicy runAsUser runAsGroup runAsNonRoot supplementalGroups " +
			"supplementalGroupsPolicy fsGroup fsGroupChangePolicy seccompProfile appArmorProfile sysctls",
		refused: "windowsOptions"},

	{of: v1.Sysctl{},
		supported: "name value"},

	{of: v1.SecurityContext{},
		supported: "capabilities privileged seLinuxOptions runAsUser runAsGroup runAsNonRoot " +
			"readOnlyRootFilesystem allowPrivilegeEscalation procMount seccompProfile appArmorProfile",
		refused: "windowsOptions"},

	{of: v1.SELinuxOptions{},
		supported: "user role type level"},

	{of: v1.SeccompProfile{},
		supported: "type localhostProfile"},

	{of: v1.AppArmorProfile{},
		supported: "type localhostProfile"},

	{of: v1.Capabilities{},
		supported: "add drop"},
}

// support is what the table says of a field.
type support uint8

const (
	unclassified support = iota
	supported
	serverSide
	refused
)

// fieldInfo is one JSON field of an API type.
type fieldInfo struct {
	typ     reflect.Type
	support support
	// check refuses values of a supported field that this agent does not do.
	check valueCheck
}

// schema is the table joined with the Go types of k8s.io/api: what may stand
// where, by JSON name.
var schema = sync.OnceValue(func() map[reflect.Type]map[string]fieldInfo {
	table := make(map[reflect.Type]map[string]support, len(supportTable()))
	for _, t := range supportTable() {
		fields := map[string]support{}
		for list, s := range map[string]support{t.supported: supported, t.serverSide: serverSide, t.refused: refused} {
			for _, name := range strings.Fields(list) {
				fields[name] = s
			}
		}
		table[reflect.TypeOf(t.of)] = fields
	}
	out := make(map[reflect.Type]map[string]fieldInfo, len(table))
	for t := range table {
		fields := map[string]fieldInfo{}
		collectFields(t, table, fields)
		out[t] = fields
	}
	return out
})

// collectFields adds a struct's JSON fields and those of the structs it
// inlines.
func collectFields(t reflect.Type, table map[reflect.Type]map[string]support, into map[string]fieldInfo) {
	for f := range t.Fields() {
		name, inline := jsonName(f)
		switch {
		case inline && f.Type == reflect.TypeFor[metav1.TypeMeta]():
			for _, name := range []string{"apiVersion", "kind"} {
				into[name] = fieldInfo{typ: reflect.TypeFor[string](), support: table[t][name]}
			}
		case inline:
			collectFields(f.Type, table, into)
		case name != "":
			into[name] = fieldInfo{typ: f.Type, support: table[t][name], check: valueChecks[t.Name()+"."+name]}
		}
	}
}

// jsonName returns the name of a struct field in JSON; inline is true for a
// struct whose fields stand in its parent.
func jsonName(f reflect.StructField) (name string, inline bool) {
	name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
	if name == "-" {
		return "", false
	}
	return name, f.Anonymous && name == "" || strings.Contains(opts, "inline")
}
