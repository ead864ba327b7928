/*
 * A process whose first thread has ended, and another one has not: `/proc/PID/stat` tells that it is a zombie.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static void *go_on(void *leader)
{
	pthread_join(*(pthread_t *)leader, NULL);
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}

int main(void)
{
	static pthread_t leader;
	pthread_t thread;

	signal(SIGTERM, SIG_IGN);
	leader = pthread_self();
	if (pthread_create(&thread, NULL, go_on, &leader))
		return 1;
	pthread_exit(NULL);
}
