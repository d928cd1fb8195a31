package translate_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
)

// served is what servers that many have make of paths, and how it is known:
//
//	apt-get download nginx apache2-bin libapr1 libaprutil1 libtomcat10-java tomcat10-common …, each unpacked (dpkg -x) into one directory
//	go test ./pilot/internal/translate -run NoServerServesWhatIsDenied -servers <directory>
const served = "testdata/served.json"

var unpacked = flag.String("servers", "", "directory with Debian's nginx, Apache and Tomcat, of which is recorded what they serve")

// recorded is the content of the file.
type recorded struct {
	Paths  string              // the sum of all that were asked for
	Served map[string][]string // by server: those that got something of what hidden names
}

// hidden are files, and what they hold.
var hidden = map[string]string{"admin": "the admin's", "secret/x": "a secret"}

func sumOf(paths []string) string {
	sum := sha256.Sum256([]byte(strings.Join(paths, "\n")))
	return hex.EncodeToString(sum[:])
}

// whatServersServe is what each server makes of paths.
func whatServersServe(t *testing.T, paths []string) map[string][]string {
	t.Helper()
	if *unpacked != "" {
		record(t, paths)
	}
	text, err := os.ReadFile(served)
	if err != nil {
		t.Fatal(err)
	}
	var r recorded
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if r.Paths != sumOf(paths) {
		t.Fatalf("%s is of other paths: record it anew, as servers_test.go says", served)
	}
	return r.Served
}

func record(t *testing.T, paths []string) {
	t.Helper()
	r := recorded{Paths: sumOf(paths), Served: map[string][]string{}}
	for _, s := range startServers(t) {
		found := []string{}
		for _, path := range paths {
			if body := s.get(t, path); slices.ContainsFunc([]string{hidden["admin"], hidden["secret/x"]}, func(h string) bool { return strings.Contains(body, h) }) {
				found = append(found, path)
			}
		}
		r.Served[s.name] = found
	}
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(served, append(text, '\n'), 0o644); err != nil { //nolint:gosec // test data
		t.Fatal(err)
	}
}

// fileServer serves files.
type fileServer struct {
	name string
	port uint32
}

func (s fileServer) get(t *testing.T, path string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", s.port), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "" // some say nothing to what is no path
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

// startServers runs all of them until the test ends, before the hidden files.
func startServers(t *testing.T) []fileServer {
	t.Helper()
	dir, ports := t.TempDir(), envoytest.FreePorts(t, 4)
	write := func(path, text string) string {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // test data
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil { //nolint:gosec // test data
			t.Fatal(err)
		}
		return path
	}
	for name, text := range hidden {
		write("www/"+name, text)
	}
	write("www/x/y", "for everybody")
	www := filepath.Join(dir, "www")
	in := func(path string) string { return filepath.Join(*unpacked, path) }
	nginx := write("nginx.conf", fmt.Sprintf(`daemon off; master_process off; pid %[1]s/nginx.pid; events {}
http { access_log off; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
server { listen 127.0.0.1:%[2]d; root %[3]s; } }`, dir, ports[0], www))
	apache := func(name string, port uint32, more string) string {
		return write(name, fmt.Sprintf(`ServerRoot %[1]s
LoadModule mpm_event_module %[2]s/mod_mpm_event.so
LoadModule authz_core_module %[2]s/mod_authz_core.so
Listen 127.0.0.1:%[3]d
ServerName h
PidFile %[1]s/%[5]s.pid
ErrorLog %[1]s/%[5]s.log
DefaultRuntimeDir %[1]s
DocumentRoot %[4]s
%[6]s
<Directory %[4]s>
Require all granted
</Directory>`, dir, in("usr/lib/apache2/modules"), port, www, name, more))
	}
	write("conf/server.xml", fmt.Sprintf(`<Server port="-1"><Service name="Catalina"><Connector port="%d" address="127.0.0.1"/>
<Engine name="Catalina" defaultHost="h"><Host name="h" appBase="none"><Context path="" docBase="%s"/></Host></Engine></Service></Server>`, ports[3], www))
	write("conf/web.xml", `<web-app><servlet><servlet-name>default</servlet-name><servlet-class>org.apache.catalina.servlets.DefaultServlet</servlet-class></servlet>
<servlet-mapping><servlet-name>default</servlet-name><url-pattern>/</url-pattern></servlet-mapping></web-app>`)
	out := []fileServer{{"nginx", ports[0]}, {"Apache", ports[1]}, {"Apache that decodes slashes", ports[2]}, {"Tomcat", ports[3]}}
	for i, line := range [][]string{
		{in("usr/sbin/nginx"), "-p", dir, "-c", nginx, "-e", filepath.Join(dir, "nginx.log")},
		{in("usr/sbin/apache2"), "-X", "-f", apache("apache.conf", ports[1], "")},
		{in("usr/sbin/apache2"), "-X", "-f", apache("decoding.conf", ports[2], "AllowEncodedSlashes On")},
		{"java", "-cp", in("usr/share/java") + "/*", "-Dcatalina.home=" + dir, "-Dcatalina.base=" + dir, "org.apache.catalina.startup.Bootstrap"},
	} {
		cmd := exec.Command(line[0], line[1:]...)
		cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+in("usr/lib/x86_64-linux-gnu"))
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		for end := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", out[i].port)); err == nil {
				conn.Close()
				break
			} else if time.Now().After(end) {
				t.Fatalf("%s does not start: %v", out[i].name, err)
			}
		}
	}
	return out
}
