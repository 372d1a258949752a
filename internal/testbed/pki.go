package testbed

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"

	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"
)

// pki is what the members of a control plane know each other by.
type pki struct {
	ca      pair
	key     *ecdsa.PrivateKey
	parsed  *x509.Certificate
	account *ecdsa.PrivateKey // signs the tokens of service accounts
}

// pair is a certificate and its key.
type pair struct{ certPEM, keyPEM []byte }

func newPKI() (*pki, error) {
	p := &pki{}
	var err error
	if p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if p.account, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	template := certificate("test control plane")
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	p.parsed = template
	if p.ca, err = p.sign(template, p.key); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(p.ca.certPEM)
	p.parsed, err = x509.ParseCertificate(block.Bytes)
	return p, err
}

// certificate is the part that all have in common.
func certificate(name string, groups ...string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		panic(err) // the kernel has no random numbers: nothing works
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, Organization: groups},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

func (p *pki) sign(template *x509.Certificate, key *ecdsa.PrivateKey) (pair, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, p.parsed, key.Public(), p.key)
	if err != nil {
		return pair{}, fmt.Errorf("sign the certificate of %s: %w", template.Subject.CommonName, err)
	}
	keyPEM, err := privatePEM(key)
	return pair{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM}, err
}

func privatePEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

func publicPEM(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), err
}

// client makes a certificate by which the API server knows a user.
func (p *pki) client(user string, groups ...string) (cert, key []byte, err error) {
	template := certificate(user, groups...)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	made, err := p.issue(template)
	return made.certPEM, made.keyPEM, err
}

// server makes a certificate for something that listens on the addresses given.
func (p *pki) server(name string, dnsNames []string, ips ...string) (pair, error) {
	template := certificate(name)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	template.DNSNames = dnsNames
	for _, ip := range ips {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	return p.issue(template)
}

func (p *pki) issue(template *x509.Certificate) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	return p.sign(template, key)
}

// apiserverFiles are the files that kube-apiserver is started with.
func (p *pki) apiserverFiles() (map[string][]byte, error) {
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	server, err := p.server("kube-apiserver", names, ControlPlaneIP, GuestControlPlaneIP, "127.0.0.1", "10.96.0.1")
	if err != nil {
		return nil, err
	}
	cert, key, err := p.client("kube-apiserver-kubelet-client", "system:masters")
	if err != nil {
		return nil, err
	}
	private, err := privatePEM(p.account)
	if err != nil {
		return nil, err
	}
	public, err := publicPEM(p.account.Public())
	return map[string][]byte{
		"ca.crt": p.ca.certPEM, "server.crt": server.certPEM, "server.key": server.keyPEM,
		"kubelet-client.crt": cert, "kubelet-client.key": key, "sa.key": private, "sa.pub": public,
	}, err
}

func (p *pki) kubeconfig(host, user string, groups ...string) ([]byte, error) {
	cert, key, err := p.client(user, groups...)
	if err != nil {
		return nil, err
	}
	return yaml.Marshal(clientcmd.Config{
		APIVersion: "v1", Kind: "Config", CurrentContext: "test",
		Clusters:  []clientcmd.NamedCluster{{Name: "test", Cluster: clientcmd.Cluster{Server: host, CertificateAuthorityData: p.ca.certPEM}}},
		AuthInfos: []clientcmd.NamedAuthInfo{{Name: user, AuthInfo: clientcmd.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}}},
		Contexts:  []clientcmd.NamedContext{{Name: "test", Context: clientcmd.Context{Cluster: "test", AuthInfo: user}}},
	})
}
