package manifest

import (
	"maps"
	"strings"
)

// Why whole groups of fields are refused, and what to do instead.
const (
	notSupported      = "not supported by this version of nodeagent; remove it"
	needsControlPlane = "not supported: it needs a control plane that issues tokens and certificates, and there is none; remove it"
	alphaAndOff       = "not supported: alpha in Kubernetes v1.37 and off there, where it does nothing; remove it"
	windowsOnly       = "not supported: nodeagent runs pods of Linux only; remove it"
	dynamicResources  = "not supported: there are no device plugins and no dynamic resource allocation; remove it"
	notMounted        = "not supported: kubelet v1.37 mounts none itself, and neither does nodeagent: mount it on the node and use hostPath, or a local PersistentVolume"
	scsi              = "not supported: nodeagent attaches no disks: attach it on the node and use hostPath, or a local PersistentVolume"
	needsDriver       = "not supported: no CSI drivers run here: mount it on the node and use hostPath, or a local PersistentVolume"
)

// whyRefused says of refused fields why they are, by Go type and JSON name.
var whyRefused = merge(
	because(needsControlPlane, "VolumeProjection", "serviceAccountToken clusterTrustBundle podCertificate"),
	because(alphaAndOff, "PodSpec", "schedulingGroup evictionResponders"),
	because(alphaAndOff, "VolumeMount", "bindMountOptions"),
	because(alphaAndOff, "HTTPGetAction", "protocol"),
	because(alphaAndOff, "GRPCAction", "mode"),
	because(alphaAndOff, "EmptyDirVolumeSource", "mode"),
	because(alphaAndOff, "ConfigMapVolumeSource", "defaultUser"),
	because(alphaAndOff, "SecretVolumeSource", "defaultUser"),
	because(alphaAndOff, "DownwardAPIVolumeSource", "defaultUser"),
	because(alphaAndOff, "ProjectedVolumeSource", "defaultUser"),
	because(alphaAndOff, "KeyToPath", "user"),
	because(alphaAndOff, "DownwardAPIVolumeFile", "user"),
	because(windowsOnly, "PodSecurityContext", "windowsOptions"),
	because(windowsOnly, "SecurityContext", "windowsOptions"),
	because(dynamicResources, "PodSpec", "resourceClaims"),
	because(dynamicResources, "ResourceRequirements", "claims"),
	because("they are added to a pod that runs, as \"kubectl debug\" does; remove it", "PodSpec", "ephemeralContainers"),
	because("not supported: no scheduler waits here for gates to be opened; remove it", "PodSpec", "schedulingGates"),
	because(scsi, "Volume", "iscsi fc"),
	because(scsi, "PersistentVolumeSpec", "iscsi fc"),
	because(notMounted, "Volume", "glusterfs rbd cephfs flocker quobyte photonPersistentDisk scaleIO storageos"),
	because(needsDriver, "Volume", "csi azureDisk azureFile awsElasticBlockStore gcePersistentDisk cinder vsphereVolume portworxVolume"),
	because(notMounted, "PersistentVolumeSpec", "glusterfs rbd cephfs flocker quobyte photonPersistentDisk scaleIO storageos"),
	because(needsDriver, "PersistentVolumeSpec", "csi azureDisk azureFile awsElasticBlockStore gcePersistentDisk cinder vsphereVolume portworxVolume"),
	because("not supported: nothing here makes volumes from others; remove it", "PersistentVolumeClaimSpec", "dataSource dataSourceRef"),
	because("not supported: no CSI drivers run here that would know such a class; remove it", "PersistentVolumeClaimSpec", "volumeAttributesClassName"),
	because("not supported: no CSI drivers run here that would know such a class; remove it", "PersistentVolumeSpec", "volumeAttributesClassName"),
	because("not supported, as in kubelet since v1.33: cloning on the node runs what the repository says; use an init container with an emptyDir", "Volume", "gitRepo"),
	because("not supported: such drivers are programs that run on the node as root; mount it on the node and use hostPath", "Volume", "flexVolume"),
	because("not supported: such drivers are programs that run on the node as root; mount it on the node and use hostPath", "PersistentVolumeSpec", "flexVolume"),
)

func because(why, typ, fields string) map[string]string {
	out := map[string]string{}
	for f := range strings.FieldsSeq(fields) {
		out[typ+"."+f] = why
	}
	return out
}

func merge(all ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range all {
		maps.Copy(out, m)
	}
	return out
}
