// Package credentials makes what the API over TCP needs where the user gives
// none of his own, a certificate authority and a token, and the kubeconfig that
// holds them.
//
// Both are files of a folder below the state folder, for root only, and outlive
// the agent: a kubeconfig stays good until somebody asks for new ones. The
// server's certificate is kept in memory alone, and made anew long before it ends.
package credentials

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/store"
)

// Names in the folder.
const (
	authorityFile = "ca.pem" // certificate and key: they are of one another
	tokenFile     = "token"
	lockFile      = "lock"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	serverLife    = 365 * 24 * time.Hour
	// renewal is what is left of a server's certificate when it is made anew, and
	// of an authority that a new one takes the place of at the next start.
	renewal = 60 * 24 * time.Hour
	// tokenBytes are of entropy.
	tokenBytes = 32
)

// Files are the credentials in a folder.
type Files struct {
	dir       string
	now       func() time.Time
	authority *x509.Certificate
	key       *ecdsa.PrivateKey
}

// Open reads the credentials in dir and makes those that are missing, are of no
// use, or end soon. Two processes may do so at once.
func Open(dir string, now func() time.Time) (*Files, error) {
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	f := &Files{dir: dir, now: now}
	if err := f.readAuthority(); err != nil {
		if err := f.makeAuthority(); err != nil {
			return nil, err
		}
	}
	if _, err := f.Token(); errors.Is(err, fs.ErrNotExist) {
		if err := f.makeToken(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// lock keeps two processes from making credentials at once.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("credentials of the API: %w", err)
	}
	l, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("credentials of the API: %w", err)
	}
	if err := unix.Flock(int(l.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("credentials of the API: lock: %w", err), l.Close())
	}
	return func() { _ = l.Close() }, nil // which drops the lock
}

// Renew replaces the token: who has the old one is out at once. The authority,
// which tells the agent from others, stays.
func (f *Files) Renew() error {
	unlock, err := lock(f.dir)
	if err != nil {
		return err
	}
	defer unlock()
	return f.makeToken()
}

// TokenFile holds the token.
func (f *Files) TokenFile() string { return filepath.Join(f.dir, tokenFile) }

// Token is what clients show.
func (f *Files) Token() (string, error) {
	b, err := os.ReadFile(f.TokenFile())
	if err == nil && len(bytes.TrimSpace(b)) == 0 {
		err = fs.ErrNotExist // a crash left it empty
	}
	return string(bytes.TrimSpace(b)), err
}

func (f *Files) makeToken() error {
	b := make([]byte, tokenBytes)
	_, _ = rand.Read(b) // it never fails
	text := base64.RawURLEncoding.EncodeToString(b) + "\n"
	if err := store.WriteFile(f.TokenFile(), []byte(text)); err != nil {
		return fmt.Errorf("token of the API: %w", err)
	}
	return nil
}

// Authority is the certificate that clients trust, PEM.
func (f *Files) Authority() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.authority.Raw})
}

// readAuthority takes what the file has, when it can still be used.
func (f *Files) readAuthority() error {
	text, err := os.ReadFile(filepath.Join(f.dir, authorityFile))
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || f.now().After(pair.Leaf.NotAfter.Add(-renewal)) {
		return errors.New("it is not one of ours, or ends soon")
	}
	f.authority, f.key = pair.Leaf, key
	return nil
}

func (f *Files) makeAuthority() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("authority of the API: %w", err)
	}
	host, _ := os.Hostname() // it is there for people
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "nodeagent on " + host},
		NotBefore: beginning, NotAfter: f.now().Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("authority of the API: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("authority of the API: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	if err := store.WriteFile(filepath.Join(f.dir, authorityFile), text); err != nil {
		return fmt.Errorf("authority of the API: %w", err)
	}
	f.key = key
	f.authority, err = x509.ParseCertificate(der)
	return err
}

// beginning lies before the clock of any host that has lost the time.
var beginning = time.Unix(0, 0).UTC()

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // it never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}

// Certificate is a tls.Config's GetCertificate for a server with these names and
// addresses.
func (f *Files) Certificate(hosts []string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	var mu sync.Mutex
	var cert *tls.Certificate
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if cert != nil && f.now().Before(cert.Leaf.NotAfter.Add(-renewal)) {
			return cert, nil
		}
		fresh, err := f.issue(hosts)
		if err != nil {
			return nil, fmt.Errorf("certificate of the API: %w", err)
		}
		cert = fresh
		return cert, nil
	}
}

func (f *Files) issue(hosts []string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "nodeagent"},
		NotBefore: beginning, NotAfter: f.now().Add(serverLife), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	hosts = append([]string{"localhost", "127.0.0.1", "::1"}, hosts...)
	slices.Sort(hosts)
	for _, h := range slices.Compact(hosts) {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if h != "" {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, f.authority, key.Public(), f.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}
