package runtime

import (
	"reflect"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestFeaturesOfMounts(t *testing.T) {
	for _, tc := range []struct {
		name, version string
		images        bool
	}{
		{"containerd", "1.6.20~ds1", false}, {"containerd", "v2.0.5", false}, {"containerd", "v2.1.0", true}, {"containerd", "2.4.2", true},
		{"containerd", "10.0", true}, {"containerd", "unknown", true}, {"cri-o", "1.30.1", false}, {"cri-o", "1.31.0", true}, {"other", "0.1", true},
	} {
		a := &about{name: tc.name, version: tc.version}
		readStatus(a, &cri.StatusResponse{RuntimeHandlers: []*cri.RuntimeHandler{
			{Name: "", Features: &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}},
			{Name: "old", Features: &cri.RuntimeHandlerFeatures{}},
			{Name: "runc", Features: &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}},
		}})
		if a.features.ImageVolumes != tc.images || !reflect.DeepEqual(a.features.RecursiveReadOnly, []string{"", "runc"}) {
			t.Errorf("%s %s: %+v", tc.name, tc.version, a.features)
		}
	}
}

func TestMountsToCRI(t *testing.T) {
	got, err := mounts([]Mount{
		{HostPath: "/a", ContainerPath: "/b", ReadOnly: true, RecursiveReadOnly: true},
		{ContainerPath: "/i", ReadOnly: true, Image: "sha256:1", ImageSubPath: "d"},
	})
	if err != nil || !got[0].RecursiveReadOnly || got[0].Image != nil ||
		got[1].Image.GetImage() != "sha256:1" || got[1].ImageSubPath != "d" || got[1].HostPath != "" || !got[1].Readonly {
		t.Errorf("%+v, %v", got, err)
	}
}
