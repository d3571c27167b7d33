/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two CPUs meet with one packet: race FD IFINDEX ROUNDS FRAME SPORT_AT FIRST
 *
 * Runs a tc program (BPF_PROG_TEST_RUN) on two CPUs at the same moment, ROUNDS times: each time on the frame (hex) with
 * the next source port, from FIRST on, at that offset. Checksums do not follow; the programs do not look at them.
 */
#define _GNU_SOURCE
#include <linux/bpf.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fd, ifindex, rounds, at, first, length;
static unsigned char frame[2048];
static atomic_int arrived;
static atomic_long failed;

static void *racer(void *cpu)
{
	unsigned char mine[2048], out[2048];
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((long)cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		atomic_fetch_add(&failed, 1);
	memcpy(mine, frame, length);
	for (int i = 0; i < rounds; i++) {
		struct __sk_buff ctx = {.ifindex = ifindex};
		union bpf_attr attr;

		mine[at] = (first + i) >> 8;
		mine[at + 1] = first + i;
		memset(&attr, 0, sizeof(attr));
		attr.test.prog_fd = fd;
		attr.test.data_in = (uintptr_t)mine;
		attr.test.data_size_in = length;
		attr.test.data_out = (uintptr_t)out;
		attr.test.data_size_out = sizeof(out);
		attr.test.ctx_in = (uintptr_t)&ctx;
		attr.test.ctx_size_in = sizeof(ctx);
		atomic_fetch_add(&arrived, 1);
		while (atomic_load(&arrived) < 2 * (i + 1))
			;
		if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr)))
			atomic_fetch_add(&failed, 1);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];

	if (argc != 7)
		return 2;
	fd = atoi(argv[1]);
	ifindex = atoi(argv[2]);
	rounds = atoi(argv[3]);
	length = strlen(argv[4]) / 2;
	for (int i = 0; i < length; i++)
		sscanf(argv[4] + 2 * i, "%2hhx", &frame[i]);
	at = atoi(argv[5]);
	first = atoi(argv[6]);
	for (long cpu = 0; cpu < 2; cpu++)
		pthread_create(&threads[cpu], NULL, racer, (void *)cpu);
	for (int cpu = 0; cpu < 2; cpu++)
		pthread_join(threads[cpu], NULL);
	return failed ? 1 : 0;
}
