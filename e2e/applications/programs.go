// Package applications runs real programs between pods of the mesh, as their users run them, and lets each program's own client say whether it works.
package applications

// Program is one that is deployed by testdata/<Name>.yaml and tried by its own client. The scripts are for bash, in the client's pod; $AT follows the name of a
// Service: it is empty, or "." and the namespace.
type Program struct {
	Name   string
	Form   string // tried until it succeeds, where a cluster has to form first
	Test   string // the client's self-test
	Ask    string // one quick call, which a stranger and a pod outside of the mesh must not succeed with
	Server []Check
	// Undeclared is what the self-test says where no port's protocol is declared; "" if it passes then, too.
	Undeclared string
}

// Check is a question to a server's own tools, in the container of a pod.
type Check struct {
	App, Container, Script string
}

// Programs are all that are tried, in the order of docs/applications.md.
var Programs = []Program{
	{
		Name: "postgresql",
		Form: `PGPASSWORD=secret psql -h postgres-primary -U postgres -Atc 'select state from pg_stat_replication' | grep -x streaming`,
		Test: `
			export PGUSER=postgres PGPASSWORD=secret
			createdb -h postgres-primary bench
			pgbench -h postgres-primary --initialize --quiet --scale=1 bench
			pgbench -h postgres-primary --client=4 --transactions=50 bench | grep -x 'number of transactions actually processed: 200/200'
			lsn=$(psql -h postgres-primary -Atc 'select pg_current_wal_lsn()')
			for i in $(seq 50); do
				[ "$(psql -h postgres-1.postgres -Atc "select pg_last_wal_replay_lsn() >= '$lsn'")" = t ] && break
				sleep 0.2
			done
			psql -h postgres-1.postgres -Atc 'select count(*) from pgbench_history' bench | grep -x 200`,
		Ask: `PGPASSWORD=secret PGCONNECT_TIMEOUT=5 psql -h postgres-primary$AT -U postgres -Atc 'select 1'`,
	},
	{
		Name: "mariadb",
		Test: `mariadb-slap -h mariadb -u app -psecret --auto-generate-sql --auto-generate-sql-load-type=mixed --concurrency=4 --number-of-queries=400 | grep 'Number of clients running queries: 4'`,
		Ask:  `mariadb -h mariadb$AT -u app -psecret --connect-timeout=5 -e 'select 1'`,
	},
	{
		Name: "redis",
		Form: `
			if ! redis-cli -h redis-0.redis cluster info | grep cluster_state:ok; then
				nodes=; for i in 0 1 2; do nodes="$nodes $(getent hosts redis-$i.redis | cut -d' ' -f1):6379"; done
				redis-cli --cluster create $nodes --cluster-yes
			fi
			for i in 0 1 2; do
				redis-cli -h redis-$i.redis cluster info | grep cluster_state:ok
				redis-cli -h redis-$i.redis cluster info | grep cluster_known_nodes:3
			done`,
		Test: `
			redis-cli --cluster check redis-0.redis:6379 | grep 'All 16384 slots covered'
			for i in $(seq 20); do redis-cli -c -h redis-1.redis set key$i value$i | grep -x OK; done
			for i in $(seq 20); do redis-cli -c -h redis-2.redis get key$i | grep -x value$i; done
			redis-benchmark -h redis --cluster -t set,get,lpush -n 2000 -c 10 -q`,
		Ask: `timeout 10 redis-cli -h redis$AT ping | grep PONG`,
	},
	{
		Name: "rabbitmq",
		Test: `
			url=amqp://app:secret@rabbitmq
			amqp-declare-queue -u $url -q letters
			for i in $(seq 20); do amqp-publish -u $url -r letters -b letter$i; done
			for i in $(seq 20); do amqp-get -u $url -q letters | grep -x letter$i; done`,
		Ask: `timeout 10 amqp-declare-queue -u amqp://app:secret@rabbitmq$AT -q asked`,
		Server: []Check{{"rabbitmq", "rabbitmq", `
			export HOME=/var/lib/rabbitmq
			setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups /usr/lib/rabbitmq/bin/rabbitmqctl --longnames cluster_status --formatter=json | tee /tmp/status
			tail -1 /tmp/status | grep -oE '"running_nodes":\[[^]]*\]' | tr , '\n' | grep -c rabbit@ | grep -x 3`}},
	},
	{
		Name: "nats",
		Form: `for i in 0 1 2; do curl -sf http://nats-$i.nats-headless:8222/routez | grep -E '"num_routes": *2'; done`,
		Test: `
			nats -s nats://nats-0.nats-headless:4222 bench sub letters --clients=2 --msgs=2000 --no-progress > /tmp/sub & sub=$!
			for i in $(seq 50); do curl -sf 'http://nats-1.nats-headless:8222/routez?subs=1' | grep letters && break; sleep 0.2; done
			nats -s nats://nats-1.nats-headless:4222 bench pub letters --clients=2 --msgs=2000 --no-progress | grep 'publisher aggregated stats'
			timeout 30 tail --pid=$sub -f /dev/null
			grep 'subscriber aggregated stats' /tmp/sub
			nats -s nats://nats:4222 rtt`,
		Ask: `timeout 10 nats -s nats://nats$AT:4222 --timeout=5s pub asked hello`,
	},
	{
		Name: "kafka",
		Test: `
			kcat -b kafka -L | grep ' 3 brokers'
			seq 1000 | kcat -b kafka -P -t numbers -X acks=all
			kcat -b kafka -C -t numbers -e -q | sort -n | cmp - <(seq 1000)
			timeout 60 kcat -b kafka -G readers numbers -e -q -X auto.offset.reset=earliest | sort -n | cmp - <(seq 1000)`,
		Ask: `kcat -b kafka$AT -L -m 5`,
	},
	{
		Name: "zookeeper",
		Form: `
			for i in 0 1 2; do timeout 5 bash -c "exec 3<>/dev/tcp/zookeeper-$i.zookeeper-headless/2181; printf srvr >&3; grep Mode: <&3"; done | tee /tmp/modes
			grep -c follower /tmp/modes | grep -x 2; grep leader /tmp/modes`,
		Test: zooKeeperTest,
		Ask:  `timeout 10 bash -c "exec 3<>/dev/tcp/zookeeper$AT/2181; printf ruok >&3; cat <&3" | grep imok`,
	},
	{
		Name: "etcd",
		Test: `
			export ETCDCTL_API=3
			etcdctl --endpoints=http://etcd-0.etcd-headless:2379,http://etcd-1.etcd-headless:2379,http://etcd-2.etcd-headless:2379 endpoint health
			etcdctl --endpoints=http://etcd:2379 member list | grep -c started | grep -x 3
			timeout 30 etcdctl --endpoints=http://etcd-1.etcd-headless:2379 watch --prefix key > /tmp/watched & watch=$!
			for i in $(seq 20); do
				etcdctl --endpoints=http://etcd:2379 put key$i value$i
				etcdctl --endpoints=http://etcd-2.etcd-headless:2379 get key$i | grep -x value$i
			done
			for i in $(seq 50); do grep -q value20 /tmp/watched && break; etcdctl --endpoints=http://etcd:2379 put key20 value20; sleep 0.2; done
			kill $watch
			grep -x value20 /tmp/watched | uniq`,
		Ask: `ETCDCTL_API=3 etcdctl --endpoints=http://etcd$AT:2379 --command-timeout=5s get key --prefix --keys-only`,
	},
	{
		Name: "nginx",
		Test: `
			for keep in '' -k; do
				ab -q -n 1000 -c 10 $keep http://nginx/ > /tmp/ab
				grep -E 'Complete requests: +1000' /tmp/ab
				grep -E 'Failed requests: +0' /tmp/ab
				if grep Non-2xx /tmp/ab; then exit 1; fi
			done
			curl -sf http://nginx/ | grep 'hello from nginx'
			head -c 20000000 /dev/zero | curl -sf --data-binary @- http://nginx/echo
			curl -sf -r 0-4 http://nginx/index.html | grep hello
			curl -s -o /dev/null -w '%{http_code}' http://nginx/absent | grep 404`,
		Ask: `curl -sf -m 10 http://nginx$AT/`,
	},
	{
		Name: "envoy",
		Test: `
			curl -sf http://envoy/ | grep 'hello from behind envoy'
			curl -sf --http2-prior-knowledge http://envoy/ | grep 'hello from behind envoy'
			curl -sf --parallel --parallel-max 10 'http://envoy/?[1-500]' | grep -c 'hello from behind envoy' | grep -x 500`,
		Ask: `curl -sf -m 10 http://envoy$AT/`,
	},
	{
		Name: "postfix",
		Test: `
			swaks --server postfix --from client@example.test --to root@example.test --body hello
			if swaks --server postfix --from client@example.test --to someone@elsewhere.test > /tmp/relayed; then exit 1; fi
			grep 'Relay access denied' /tmp/relayed`,
		Ask:    `swaks --server postfix$AT --timeout 10 --quit-after RCPT --from client@example.test --to root@example.test`,
		Server: []Check{{"postfix", "postfix", `for i in $(seq 50); do grep -qs hello /var/mail/* && exit; sleep 0.2; done; exit 1`}},
	},
	{
		Name: "prometheus",
		Form: `promtool query instant http://prometheus:9090 'count(up{job="listed"} == 1)' | grep '=> 2 '`,
		Test: `
			promtool query instant http://prometheus:9090 'sum(up_to_date)' | grep '=> 2 '
			promtool query labels http://prometheus:9090 instance | grep -c ':8080$' | grep -x 2`,
		Ask: `curl -sf -m 10 http://prometheus$AT:9090/-/healthy`,
	},
	{
		Name: "memcached",
		Test: `memccapable -h memcached`,
		Ask:  `timeout 10 memcping --servers=memcached$AT`,
	},
	{
		Name: "mosquitto",
		Test: `
			mosquitto_pub -h mosquitto -t letters -q 2 -r -m kept
			mosquitto_sub -h mosquitto -t letters -C 21 -W 30 > /tmp/got & sub=$!
			for i in $(seq 50); do grep -q kept /tmp/got && break; sleep 0.2; done
			seq 20 | mosquitto_pub -h mosquitto -t letters -q 1 -l
			wait $sub; cmp /tmp/got <(echo kept; seq 20)`,
		Ask: `timeout 10 mosquitto_pub -h mosquitto$AT -t asked -q 1 -m hello`,
	},
}

const zooKeeperTest = `
	run() { java -Xmx64m -XX:TieredStopAtLevel=1 -cp /etc/zookeeper/conf:/usr/share/java/zookeeper.jar org.apache.zookeeper.ZooKeeperMain -server $1:2181 2>&1; }
	{ echo 'create /letters hello'; seq 20 | sed 's|.*|create /letters/& letter&|'; } | run zookeeper | grep 'Created /letters/20'
	{ echo 'sync /letters'; seq 20 | sed 's|.*|get /letters/&|'; } | run zookeeper-2.zookeeper-headless > /tmp/got
	for i in $(seq 20); do grep -x "letter$i" /tmp/got; done`
