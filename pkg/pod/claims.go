package pod

import v1 "k8s.io/api/core/v1"

// ClaimOf is the name of the PersistentVolumeClaim that a volume is; "" when it is
// none.
func ClaimOf(p *v1.Pod, volume string) string {
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		switch {
		case v.Name != volume:
		case v.PersistentVolumeClaim != nil:
			return v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			return EphemeralClaim(p, volume)
		}
	}
	return ""
}
