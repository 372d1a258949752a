package api

import (
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
)

// configColumns are Columns of what pods refer to, without the name.
func configColumns(kind string) []Column {
	named := func(names ...string) (out []Column) {
		for _, n := range names {
			out = append(out, Column{Name: n})
		}
		return out
	}
	switch kind {
	case "ConfigMap":
		return named("DATA", "AGE")
	case "Secret":
		return named("TYPE", "DATA", "AGE")
	case "Namespace":
		return named("STATUS", "AGE")
	case "ServiceAccount":
		return named("AGE")
	case "PersistentVolume":
		return append(named("CAPACITY", "ACCESS MODES", "RECLAIM POLICY", "STATUS", "CLAIM", "STORAGECLASS", "VOLUMEATTRIBUTESCLASS", "REASON", "AGE"), Column{"VOLUMEMODE", true})
	case "PersistentVolumeClaim":
		return append(named("STATUS", "VOLUME", "CAPACITY", "ACCESS MODES", "STORAGECLASS", "VOLUMEATTRIBUTESCLASS", "AGE"), Column{"VOLUMEMODE", true})
	case "RuntimeClass":
		return named("HANDLER", "AGE")
	case "PriorityClass":
		return named("VALUE", "GLOBAL-DEFAULT", "AGE", "PREEMPTIONPOLICY")
	}
	return named("AGE")
}

// configCells are what an object has in configColumns. Of a Secret's contents
// they have the number.
func configCells(o Object, age string) []string {
	switch o := o.(type) {
	case *v1.ConfigMap:
		return []string{strconv.Itoa(len(o.Data) + len(o.BinaryData)), age}
	case *v1.Secret:
		return []string{string(o.Type), strconv.Itoa(len(o.Data)), age}
	case *v1.Namespace:
		return []string{string(o.Status.Phase), age}
	case *v1.PersistentVolume:
		claim := ""
		if ref := o.Spec.ClaimRef; ref != nil {
			claim = ref.Namespace + "/" + ref.Name
		}
		return []string{storage(o.Spec.Capacity), AccessModes(o.Spec.AccessModes), string(o.Spec.PersistentVolumeReclaimPolicy), string(o.Status.Phase),
			claim, o.Spec.StorageClassName, "<unset>", o.Status.Reason, age, volumeMode(o.Spec.VolumeMode)}
	case *v1.PersistentVolumeClaim:
		class := o.Annotations[v1.BetaStorageClassAnnotation]
		if o.Spec.StorageClassName != nil {
			class = *o.Spec.StorageClassName
		}
		modes, capacity := "", ""
		if o.Spec.VolumeName != "" {
			modes, capacity = AccessModes(o.Status.AccessModes), storage(o.Status.Capacity)
		}
		return []string{string(o.Status.Phase), o.Spec.VolumeName, capacity, modes, class, "<unset>", age, volumeMode(o.Spec.VolumeMode)}
	case *nodev1.RuntimeClass:
		return []string{o.Handler, age}
	case *schedulingv1.PriorityClass:
		policy := ""
		if o.PreemptionPolicy != nil {
			policy = string(*o.PreemptionPolicy)
		}
		return []string{strconv.Itoa(int(o.Value)), strconv.FormatBool(o.GlobalDefault), age, policy}
	}
	return []string{age}
}

func storage(list v1.ResourceList) string {
	q, ok := list[v1.ResourceStorage]
	if !ok {
		return ""
	}
	return q.String()
}

func volumeMode(m *v1.PersistentVolumeMode) string {
	if m == nil {
		return "<unset>"
	}
	return string(*m)
}

// AccessModes is how kubectl writes them: "RWO,ROX".
func AccessModes(modes []v1.PersistentVolumeAccessMode) string {
	var out []string
	for _, m := range []struct {
		mode v1.PersistentVolumeAccessMode
		text string
	}{{v1.ReadWriteOnce, "RWO"}, {v1.ReadOnlyMany, "ROX"}, {v1.ReadWriteMany, "RWX"}, {v1.ReadWriteOncePod, "RWOP"}} {
		if slices.Contains(modes, m.mode) {
			out = append(out, m.text)
		}
	}
	return strings.Join(out, ",")
}
