-- Labels of jobs, each as 'key=value', by which jobs are listed. A job without labels has no row. In partitions by the time
-- inside the job id, which are made and dropped with those of harness_results.
CREATE TABLE harness_labels (
    tenant text COLLATE "C" NOT NULL,
    label  text COLLATE "C" NOT NULL,
    job_id uuid NOT NULL,
    PRIMARY KEY (tenant, label, job_id)
) PARTITION BY RANGE (job_id);

-- A job's own labels, where it is shown. By hash, so that no list by label goes by it: for a partition that is still empty a
-- planner takes any index that has the order, and keeps that plan while the partition fills.
CREATE INDEX harness_labels_job ON harness_labels USING hash (job_id);
