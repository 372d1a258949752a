package volumes

import (
	"context"
	"maps"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// projected has the files of several sources in one folder. It lives in memory,
// as Secrets may be among them.
type projected struct{ content }

func (projected) Name() string              { return "projected" }
func (projected) Plugin() string            { return "kubernetes.io~projected" }
func (projected) Handles(v *v1.Volume) bool { return v.Projected != nil }
func (projected) Record(*v1.Volume) Record  { return Record{Medium: string(v1.StorageMediumMemory)} }

func (k projected) SetUp(_ context.Context, r Request) (Mounted, error) {
	files, err := k.files(r.Pod, r.Volume.Projected)
	return k.fill(r, k.Name(), v1.StorageMediumMemory, files, err)
}

// files are those of all sources; of two that name one file the later wins.
func (k projected) files(p *v1.Pod, src *v1.ProjectedVolumeSource) (payload, error) {
	all, defaultMode := payload{}, mode(src.DefaultMode)
	for i := range src.Sources {
		var files payload
		var err error
		switch s := &src.Sources[i]; {
		case s.ConfigMap != nil:
			files, err = k.configMapFiles(p.Namespace, s.ConfigMap.Name, s.ConfigMap.Items, defaultMode, isTrue(s.ConfigMap.Optional))
		case s.Secret != nil:
			files, err = k.secretFiles(p.Namespace, s.Secret.Name, s.Secret.Items, defaultMode, isTrue(s.Secret.Optional))
		case s.DownwardAPI != nil:
			files, err = k.downwardFiles(p, s.DownwardAPI.Items, defaultMode)
		case s.ServiceAccountToken != nil, s.ClusterTrustBundle != nil, s.PodCertificate != nil:
			err = errdefs.Errorf(errdefs.ErrInvalid, "sources[%d] needs a control plane that issues tokens and certificates; there is none", i)
		}
		if err != nil {
			return nil, err
		}
		maps.Copy(all, files)
	}
	return all, nil
}
