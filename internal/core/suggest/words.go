package suggest

import (
	"strconv"
	"strings"
	"unicode"

	"bulkhead/internal/core/model"
)

// Roles as proposals spell them, unless the inventory already spells them otherwise.
const (
	roleWeb        = "web"
	roleAPI        = "api"
	roleDB         = "db"
	roleCache      = "cache"
	roleQueue      = "queue"
	roleProxy      = "proxy"
	roleSearch     = "search"
	roleWorker     = "worker"
	roleDirectory  = "directory"
	roleDNS        = "dns"
	roleTime       = "time"
	roleMail       = "mail"
	roleFiles      = "files"
	roleMonitor    = "monitor"
	roleBastion    = "bastion"
	roleOps        = "ops"
	roleBackup     = "backup"
	roleCI         = "ci"
	roleVault      = "vault"
	rolePLC        = "plc"
	roleHMI        = "hmi"
	roleHistorian  = "historian"
	roleMES        = "mes"
	roleImaging    = "imaging"
	roleRecords    = "records"
	roleStation    = "station"
	rolePrinter    = "printer"
	roleCamera     = "camera"
	roleRegistry   = "registry"
	roleControl    = "control"
	roleIntegrator = "integration"
)

// roleWords says which words of a name mean which role. The words of one role are synonyms: where the inventory uses
// one of them as a value of the role label, proposals use that one.
var roleWords = map[string][]string{
	roleWeb:        {"web", "www", "frontend", "front", "ui", "webserver", "site"},
	roleAPI:        {"api", "backend", "rest", "graphql", "grpc", "svc", "service"},
	roleDB:         {"db", "database", "sql", "postgres", "postgresql", "pg", "mysql", "mariadb", "oracle", "mssql", "mongo", "mongodb", "cassandra", "cockroach"},
	roleCache:      {"cache", "redis", "valkey", "memcached", "memcache"},
	roleQueue:      {"queue", "mq", "kafka", "rabbit", "rabbitmq", "nats", "broker", "mqtt", "bus"},
	roleProxy:      {"proxy", "lb", "haproxy", "gateway", "gw", "ingress", "envoy", "traefik", "edge"},
	roleSearch:     {"search", "elastic", "elasticsearch", "opensearch", "solr"},
	roleWorker:     {"worker", "job", "jobs", "batch", "cron", "scheduler", "consumer"},
	roleDirectory:  {"directory", "dc", "ldap", "ad", "idp", "sso", "keycloak", "kerberos"},
	roleDNS:        {"dns", "resolver", "ns", "named", "bind", "unbound", "coredns"},
	roleTime:       {"time", "ntp", "chrony"},
	roleMail:       {"mail", "smtp", "mx", "imap", "postfix"},
	roleFiles:      {"files", "file", "fileserver", "nfs", "smb", "samba", "nas", "ftp", "sftp", "minio", "s3"},
	roleMonitor:    {"monitor", "monitoring", "prometheus", "grafana", "zabbix", "nagios", "metrics", "logs", "syslog", "loki"},
	roleBastion:    {"bastion", "jump", "jumphost"},
	roleOps:        {"ops", "operator", "admin"},
	roleBackup:     {"backup", "bacula", "restic", "borg"},
	roleCI:         {"ci", "jenkins", "runner", "build", "builder"},
	roleVault:      {"vault", "secrets", "hsm", "pki"},
	rolePLC:        {"plc", "rtu", "modbus"},
	roleHMI:        {"hmi", "panel"},
	roleHistorian:  {"historian"},
	roleMES:        {"mes"},
	roleImaging:    {"imaging", "ct", "mri", "xray", "modality", "pacs", "dicom", "ultrasound"},
	roleRecords:    {"records", "ehr", "emr"},
	roleStation:    {"station", "workstation", "desktop", "client", "pc", "laptop"},
	rolePrinter:    {"printer", "print"},
	roleCamera:     {"camera", "cam"},
	roleRegistry:   {"registry", "artifactory", "nexus", "harbor"},
	roleControl:    {"control", "controller", "master", "scada"},
	roleIntegrator: {"integration", "hl7", "interface", "etl"},
}

// roleOfWord is roleWords the other way round.
var roleOfWord = func() map[string]string {
	m := map[string]string{}
	for role, words := range roleWords {
		for _, w := range words {
			m[w] = role
		}
	}
	return m
}()

// envWords are the words of names that mean an environment, each with its synonyms.
var envWords = map[string][]string{
	"prod":  {"prod", "prd", "production", "live"},
	"dev":   {"dev", "devel", "development"},
	"stage": {"stage", "staging", "stg", "preprod"},
	"test":  {"test", "tst", "testing", "qa", "uat"},
}

var envOfWord = func() map[string]string {
	m := map[string]string{}
	for env, words := range envWords {
		for _, w := range words {
			m[w] = env
		}
	}
	return m
}()

// noiseWords say nothing about what a workload does.
var noiseWords = map[string]bool{
	"host": true, "node": true, "server": true, "srv": true, "vm": true, "ip": true, "ec2": true, "pod": true, "app": true,
	"system": true, "main": true, "primary": true, "replica": true, "standby": true, "internal": true, "local": true, "box": true, "machine": true, "instance": true, "lab": true,
}

// wellKnown describes a port by which a role can be told, and the service document that names it.
type wellKnown struct {
	service string  // "" where the number is known better than a name
	role    string  // "" where the port says nothing about the role
	weight  float64 // how much the port says
}

// portTable holds the ports that tell something (IANA service names, and the defaults of common software).
var portTable = map[model.PortRange]wellKnown{
	tcp(21):    {"ftp", roleFiles, .6},
	tcp(22):    {"ssh", "", 0},
	tcp(25):    {"smtp", roleMail, .6},
	tcp(53):    {"dns-tcp", roleDNS, .6},
	udp(53):    {"dns", roleDNS, .65},
	tcp(80):    {"http", roleWeb, .3},
	tcp(88):    {"kerberos", roleDirectory, .6},
	tcp(104):   {"dicom", roleImaging, .65},
	udp(123):   {"ntp", roleTime, .6},
	tcp(135):   {"msrpc", "", 0},
	tcp(389):   {"ldap", roleDirectory, .6},
	tcp(443):   {"https", roleWeb, .3},
	tcp(445):   {"smb", roleFiles, .3},
	tcp(502):   {"modbus", rolePLC, .65},
	udp(514):   {"syslog", roleMonitor, .5},
	tcp(587):   {"submission", roleMail, .6},
	tcp(631):   {"ipp", rolePrinter, .5},
	tcp(636):   {"ldaps", roleDirectory, .6},
	tcp(554):   {"rtsp", roleCamera, .6},
	tcp(993):   {"imaps", roleMail, .6},
	tcp(1433):  {"mssql", roleDB, .65},
	tcp(1521):  {"oracle", roleDB, .65},
	tcp(1883):  {"mqtt", roleQueue, .6},
	tcp(2049):  {"nfs", roleFiles, .6},
	tcp(2575):  {"hl7", roleIntegrator, .5},
	tcp(3128):  {"squid", roleProxy, .5},
	tcp(3306):  {"mysql", roleDB, .65},
	tcp(3389):  {"rdp", "", 0},
	tcp(4222):  {"nats", roleQueue, .6},
	tcp(4840):  {"opcua", "", 0},
	tcp(5000):  {"", roleRegistry, .2},
	tcp(5432):  {"postgres", roleDB, .65},
	tcp(5672):  {"amqp", roleQueue, .6},
	tcp(5900):  {"vnc", "", 0},
	tcp(5985):  {"winrm", "", 0},
	tcp(6379):  {"redis", roleCache, .6},
	tcp(6443):  {"kube-api", roleControl, .5},
	tcp(8080):  {"", roleWeb, .2},
	tcp(8200):  {"vault", roleVault, .6},
	tcp(8443):  {"", roleAPI, .2},
	tcp(9042):  {"cassandra", roleDB, .65},
	tcp(9090):  {"", roleMonitor, .4},
	tcp(9092):  {"kafka", roleQueue, .6},
	tcp(9100):  {"node-exporter", "", 0},
	tcp(9200):  {"elasticsearch", roleSearch, .6},
	tcp(11112): {"", roleImaging, .65},
	tcp(11211): {"memcached", roleCache, .6},
	tcp(20000): {"dnp3", rolePLC, .6},
	tcp(27017): {"mongodb", roleDB, .65},
	tcp(44818): {"ethernet-ip", rolePLC, .6},
	tcp(102):   {"s7comm", rolePLC, .6},
	udp(47808): {"bacnet", rolePLC, .5},
}

func tcp(port uint16) model.PortRange {
	return model.PortRange{Proto: model.ProtoTCP, Lo: port, Hi: port}
}

func udp(port uint16) model.PortRange {
	return model.PortRange{Proto: model.ProtoUDP, Lo: port, Hi: port}
}

// processRoles says what a process that answers connections is. A process whose name has a role's word in it is told
// by that word.
var processRoles = map[string]string{
	"postgres": roleDB, "mysqld": roleDB, "mariadbd": roleDB, "mongod": roleDB, "sqlservr": roleDB, "tnslsnr": roleDB,
	"redis-server": roleCache, "valkey-server": roleCache, "memcached": roleCache,
	"nginx": roleWeb, "apache2": roleWeb, "httpd": roleWeb, "caddy": roleWeb, "lighttpd": roleWeb,
	"haproxy": roleProxy, "envoy": roleProxy, "traefik": roleProxy, "squid": roleProxy,
	"beam.smp": roleQueue, "nats-server": roleQueue, "mosquitto": roleQueue,
	"named": roleDNS, "unbound": roleDNS, "dnsmasq": roleDNS, "coredns": roleDNS,
	"slapd": roleDirectory, "krb5kdc": roleDirectory, "ntpd": roleTime, "chronyd": roleTime,
	"smbd": roleFiles, "nfsd": roleFiles, "vsftpd": roleFiles, "master": roleMail, "exim4": roleMail, "dovecot": roleMail,
	"prometheus": roleMonitor, "grafana": roleMonitor, "vault": roleVault,
}

// housekeeping are processes that run everywhere and so tell nothing.
var housekeeping = map[string]bool{
	"sshd": true, "systemd": true, "systemd-resolve": true, "node_exporter": true, "bulkhead-agent": true, "rpcbind": true, "cupsd": true,
}

// nameWords splits a name into lower-case words: at everything that is no letter or digit, and between letters and
// digits. Numbers are left out. "payapi" becomes pay and api where the end is a role's word.
func nameWords(name string) []string {
	var words []string
	for _, part := range strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
		part = strings.TrimRightFunc(strings.TrimLeftFunc(part, unicode.IsDigit), unicode.IsDigit)
		if part == "" || noiseWords[part] {
			continue
		}
		words = append(words, splitRole(part)...)
	}
	return words
}

// gluedRoles are the role words that names are often glued to.
var gluedRoles = []string{"api", "web", "database", "db", "cache", "queue", "worker", "proxy", "mq", "server", "svc"}

func splitRole(word string) []string {
	if roleOfWord[word] != "" || envOfWord[word] != "" {
		return []string{word}
	}
	for _, end := range gluedRoles {
		if head, ok := strings.CutSuffix(word, end); ok && len(head) >= 3 {
			if noiseWords[end] {
				return []string{head}
			}
			return []string{head, end}
		}
	}
	return []string{word}
}

// stem is the name without what numbers its instances: pay-db-1 and pay-db-2 have one stem.
func stem(name string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return unicode.ToLower(r)
	}, name), "-_./")
}

// unitStem is the part of a unit's name that names what runs in it.
func unitStem(unit string) string {
	for _, end := range []string{".service", ".scope", ".slice", ".socket"} {
		unit = strings.TrimSuffix(unit, end)
	}
	unit, _, _ = strings.Cut(unit, "@")
	return unit
}

// slug makes a string fit for names and label values: lower case, letters, digits and dashes, at most 63 bytes.
func slug(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	out := b.String()
	if len(out) > 63 {
		out = out[:63]
	}
	return strings.Trim(out, "-")
}

// count writes a number with its noun: "1 port", "3 ports", "4,311 connections".
func count[N int | uint64](n N, noun string) string {
	return thousands(uint64(n)) + " " + plural(int(min(uint64(n), 2)), noun)
}

func plural(n int, noun string) string {
	switch {
	case n == 1:
		return noun
	case strings.HasSuffix(noun, "s"):
		return noun + "es"
	}
	return noun + "s"
}

func thousands(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
